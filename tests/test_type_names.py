"""Classes, names and dotted paths as ``type`` are one."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from pixelsail_mm.registry import MODELS
from pixelsail_mm.type_names import name_types, type_name

DiceLoss, SingleTransformer = MODELS.get('DiceLoss'), MODELS.get('SingleTransformer')


class Unregistered:
    pass


@pytest.mark.parametrize(
    'kind, name',
    [
        (DiceLoss, 'DiceLoss'),
        ('DiceLoss', 'DiceLoss'),
        ('mmdet.DiceLoss', 'DiceLoss'),
        ('mmdet.models.losses.DiceLoss', 'DiceLoss'),
        (None, None),
    ],
)
def test_bare_name(kind, name):
    assert type_name(kind) == name


@pytest.mark.parametrize(
    'kind, name',
    [
        (DiceLoss, 'DiceLoss'),
        (SingleTransformer, 'SingleTransformer'),
        (OptimWrapper, 'OptimWrapper'),
        (torch.optim.SGD, 'SGD'),
        ('pixelsail_mm.models.backbones.single_transformer.SingleTransformer', 'SingleTransformer'),
        ('pixelsail_mm.SingleTransformer', 'SingleTransformer'),
        ('mmdet.DiceLoss', 'mmdet.DiceLoss'),
        ('Nowhere', 'Nowhere'),
        ('no.such.Thing', 'no.such.Thing'),
        (Unregistered, Unregistered),
    ],
)
def test_registered_names_take_the_place_of_classes(kind, name):
    cfg = Config(dict(a=[dict(b=dict(type=kind, x=1))]))
    name_types(cfg)
    assert cfg.a[0].b == dict(type=name, x=1)


def test_a_class_that_hides_behind_another_of_its_name_stays():
    class DiceLoss:
        pass

    node = dict(type=DiceLoss)
    name_types(node)
    assert node['type'] is DiceLoss
