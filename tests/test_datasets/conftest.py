"""Annotation files that the tests of this folder read."""

import json
import pickle

import pytest


@pytest.fixture
def refcoco_cfg(mini_world) -> dict:
    """Config of the reader of the mini world's references."""
    return dict(
        type='RefCOCODataset',
        data_root=str(mini_world),
        ann_file='refcoco/instances.json',
        split_file='refcoco/refs(unc).p',
        data_prefix=dict(img_path='images'),
    )


@pytest.fixture
def write_refcoco(tmp_path):
    """Write a RefCOCO folder from plain containers and give the reader's config."""

    def write(images, annotations, refs) -> dict:
        (tmp_path / 'instances.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=[]))
        )
        (tmp_path / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))
        (tmp_path / 'images').mkdir(exist_ok=True)
        return dict(
            type='RefCOCODataset', data_root=str(tmp_path), data_prefix=dict(img_path='images')
        )

    return write
