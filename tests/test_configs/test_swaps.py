"""Another type for a part is one line, in every shipped config and for every kind of part."""

import pytest
import torch

from pixelsail_mm.config import read_config
from pixelsail_mm.config.swapping import accepted_keys
from pixelsail_mm.registry import METRICS, MODELS, OPTIM_WRAPPERS, OPTIMIZERS, VISUALIZERS
from tests.test_configs.test_configs import CONFIGS, ROOT, shrunk_model

ALL = [*CONFIGS, ROOT / 'configs/distill/isnet_photos.py']


class PlainHead(torch.nn.Module):
    """A head of another project: it shares only what the model fills in with ours."""

    def __init__(self, in_channels, hidden_size, embed_channels=8):
        super().__init__()
        self.embed_channels = embed_channels


class PlainDistillLoss(torch.nn.Module):
    def __init__(self, in_channels, name='plain'):
        super().__init__()
        self.name = name


OTHER = {
    'model.backbone': (MODELS, 'EVETransformer', 'SingleTransformer'),
    'model.prompt_injector': (MODELS, 'PooledPromptInjector', 'VisualPromptInjector'),
    'model.neck': (MODELS, 'BilinearUpsampler', 'LearnableUpsampler'),
    'model.mask_head': (MODELS, 'PlainHead'),
    'model.mask_head.loss_mask': (MODELS, 'FocalLoss'),
    'model.mask_head.loss_dice': (MODELS, 'SmoothL1Loss'),
    'model.distill.0': (MODELS, 'PlainDistillLoss'),
    'model.distill.0.expert': (MODELS, 'RADIOExpert'),
    'optim_wrapper': (OPTIM_WRAPPERS, 'OptimWrapper', 'AmpOptimWrapper'),
    'optim_wrapper.optimizer': (OPTIMIZERS, 'SGD'),
    'visualizer': (VISUALIZERS, 'PixelVisualizer'),
    'val_evaluator.0': (METRICS, 'MultipleChoiceMetric', 'RefSegMetric'),
    'test_evaluator.0': (METRICS, 'MultipleChoiceMetric', 'RefSegMetric'),
}
# Keys that are for who builds the part.
FOR_THE_BUILDER = {'type', 'constructor', 'paramwise_cfg'}


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    MODELS.import_from_location()
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
    for part in (PlainHead, PlainDistillLoss):
        MODELS.register_module(module=part)


def find(cfg, key):
    for name in key.split('.'):
        cfg = cfg[int(name)] if name.isdigit() and cfg else cfg.get(name) if cfg else None
    return cfg


@pytest.mark.parametrize('path', ALL, ids=lambda path: path.stem)
def test_every_part_swaps_by_its_type_alone(path, monkeypatch):
    """Twice all at once: the parts that stand in no other swapped part, then those that do."""
    monkeypatch.chdir(ROOT)
    plain = read_config(path)
    kinds = {}
    for key, (_, *others) in OTHER.items():
        part = find(plain, key)
        if part is not None:
            kinds[key] = next(other for other in others if other != part.type)
    assert kinds.keys() >= {
        'model.backbone',
        'model.neck',
        'model.mask_head.loss_dice',
        'visualizer',
        'optim_wrapper.optimizer',
        'optim_wrapper',
    }
    inner = {key for key in kinds for outer in kinds if key.startswith(f'{outer}.')}
    for keys in (kinds.keys() - inner, inner):
        cfg = read_config(path, [f'{key}.type={kinds[key]}' for key in keys])
        for key in keys:
            taken = accepted_keys(OTHER[key][0].get(kinds[key])) | FOR_THE_BUILDER
            part = find(cfg, key)
            assert part.type == kinds[key]
            assert set(part) == {name for name in find(plain, key) if name in taken}, key
        build_all(cfg)


def build_all(cfg):
    """Build everything that was swapped, the model with tiny widths."""
    settings = shrunk_model(cfg)
    if settings['neck']['type'] == 'BilinearUpsampler':
        settings['neck'].pop('max_channels')
    for loss in settings['distill']:
        if loss['type'] == 'PlainDistillLoss':
            del loss['expert'], loss['expert_channels']
    assert MODELS.build(settings) is not None
    for metric in [*(cfg.get('val_evaluator') or []), *(cfg.get('test_evaluator') or [])]:
        optional = dict(on_missing='skip') if metric['type'] == 'CaptionMetric' else {}
        assert METRICS.build({**metric, **optional}) is not None
    optimizer = cfg.optim_wrapper.optimizer | dict(params=[torch.nn.Parameter(torch.ones(1))])
    assert OPTIMIZERS.build(optimizer) is not None
    assert VISUALIZERS.build(cfg.visualizer | dict(name=f'swap_{id(cfg)}', vis_backends=None))
