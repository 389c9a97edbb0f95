"""Small drawn data sets that the tests of this folder read."""

import json
import pickle
from pathlib import Path

import pytest

COUNTS = {'train': 24, 'val': 4, 'test': 12}


def _draw(tmp_path_factory, preset: str) -> Path:
    from pixelsail_mm.datasets.shapes_world import make_shapes_world
    folder = tmp_path_factory.mktemp('shapes_world') / preset
    make_shapes_world(folder, preset, seed=3, counts=COUNTS)
    return folder


@pytest.fixture(scope='session')
def world_counts() -> dict:
    """Images per split of the two worlds."""
    return dict(COUNTS)


@pytest.fixture(scope='session')
def mini_world(tmp_path_factory) -> Path:
    """A mini ShapesWorld of 24 + 4 + 12 images (polygons, PNG)."""
    return _draw(tmp_path_factory, 'mini')


@pytest.fixture(scope='session')
def full_world(tmp_path_factory) -> Path:
    """A full ShapesWorld of 24 + 4 + 12 images (run lengths, JPEG)."""
    return _draw(tmp_path_factory, 'full')


@pytest.fixture(params=['mini_world', 'full_world'])
def world(request) -> Path:
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def refcoco_cfg(mini_world) -> dict:
    """Config of the reader of the mini world's references."""
    return dict(
        type='RefCOCODataset',
        data_root=str(mini_world),
        ann_file='refcoco/instances.json',
        split_file='refcoco/refs(unc).p',
        data_prefix=dict(img_path='images'))


@pytest.fixture
def write_refcoco(tmp_path):
    """Write a RefCOCO folder from plain containers and give the reader's config."""

    def write(images, annotations, refs) -> dict:
        (tmp_path / 'instances.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=[])))
        (tmp_path / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))
        (tmp_path / 'images').mkdir(exist_ok=True)
        return dict(type='RefCOCODataset', data_root=str(tmp_path),
                    data_prefix=dict(img_path='images'))

    return write
