"""PackPixelInputs, and the whole pipeline as a config lists it."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.structures import PixelDataSample

H, W = 40, 64


def _pipeline(parity_dir, generation=False, keep_image=False):
    return [
        TRANSFORMS.build(cfg)
        for cfg in (
            dict(type='LoadImage'),
            dict(type='LoadMasks'),
            dict(type='LoadVisualPrompts'),
            dict(type='PromptTypeAugment'),
            dict(type='ResizeToGrid', patch_size=16),
            dict(
                type='BuildConversation',
                tokenizer=str(parity_dir / 'tokenizer'),
                generation=generation,
            ),
            dict(type='PackPixelInputs', keep_image=keep_image),
        )
    ]


def _record(**more):
    mask = np.zeros((H, W), bool)
    mask[5:25, 8:30] = True
    return dict(
        img=np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8),
        img_path='a.png',
        conversation=[dict(human='Where is <Prompt2>?', gpt='It is [SEG].')],
        masks=[mask],
        prompts=[dict(id=2, box=[8, 5, 30, 25]), dict(id=5, mask=np.ones((H, W), bool))],
        meta=dict(sample_id='s7', dataset='shapes', task='refseg', expression='dog'),
        rng=np.random.default_rng(0),
        **more,
    )


def _run(pipeline, record):
    for transform in pipeline:
        record = transform(record)
    return record


@pytest.mark.parametrize('generation', [False, True])
def test_packed_sample(parity_dir, generation):
    packed = _run(_pipeline(parity_dir, generation), _record())
    inputs, sample = packed['inputs'], packed['data_samples']
    assert set(packed) == {'inputs', 'data_samples'}
    assert set(inputs) == {'input_ids', 'labels', 'image', 'prompt_map'}
    assert inputs['input_ids'].dtype == inputs['labels'].dtype == torch.int64
    assert inputs['input_ids'].shape == inputs['labels'].shape
    assert inputs['image'].shape == (3, 48, 64) and inputs['image'].dtype == torch.uint8
    assert inputs['prompt_map'].shape == (3, 4) and inputs['prompt_map'].dtype == torch.int64
    assert set(inputs['prompt_map'].flatten().tolist()) <= {-2, 2, 5}
    assert isinstance(sample, PixelDataSample)
    assert sample.metainfo == dict(
        img_path='a.png',
        ori_shape=(H, W),
        grid=(3, 4),
        sample_id='s7',
        dataset='shapes',
        task='refseg',
        expression='dog',
        question='Where is <Prompt2>?',
        gt_text='It is [SEG].',
        dropped_turns=0,
    )
    assert sample.gt_masks.sum() == 20 * 22
    assert sample.prompt_ids.tolist() == [5, 2] and sample.prompt_masks.shape == (2, H, W)
    assert 'image' not in sample


def test_image_is_kept_on_request(parity_dir):
    record = _record()
    pixels = record['img']
    sample = _run(_pipeline(parity_dir, keep_image=True), record)['data_samples']
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)


def test_text_only_sample(parity_dir):
    packed = _run(
        _pipeline(parity_dir, keep_image=True),
        dict(conversation=[dict(human='Why?', gpt='So.')], meta={}, rng=np.random.default_rng(0)),
    )
    assert packed['inputs']['image'] is None and packed['inputs']['prompt_map'] is None
    sample = packed['data_samples']
    assert sample.grid == (0, 0) and sample.ori_shape == (0, 0) and sample.img_path is None
    assert sample.gt_masks.shape == (0, 0, 0) and sample.prompt_ids.shape == (0,)
    assert (sample.sample_id, sample.dataset, sample.task) == ('', '', '')
    assert 'image' not in sample


def test_optional_transforms_can_be_left_out(parity_dir):
    """Without LoadVisualPrompts and PromptTypeAugment a sample simply has no prompts."""
    pipeline = _pipeline(parity_dir)
    packed = _run(pipeline[:2] + pipeline[4:], _record())
    assert packed['data_samples'].prompt_masks.shape == (0, H, W)
    assert (packed['inputs']['prompt_map'] == -2).all()


def test_samples_collate_as_lists(parity_dir):
    pipeline = _pipeline(parity_dir)
    batch = pseudo_collate(
        [
            _run(pipeline, _record()),
            _run(
                pipeline,
                dict(
                    conversation=[dict(human='Why?', gpt='So.')],
                    meta={},
                    rng=np.random.default_rng(0),
                ),
            ),
        ]
    )
    assert [sample.sample_id for sample in batch['data_samples']] == ['s7', '']
    assert batch['inputs']['image'][0].shape == (3, 48, 64)
    assert batch['inputs']['image'][1] is None


def test_same_seed_same_sample(parity_dir):
    a, b = (_run(_pipeline(parity_dir), _record())['inputs'] for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_repr_names_the_settings(parity_dir):
    for transform in _pipeline(parity_dir):
        assert repr(transform).startswith(type(transform).__name__)
    assert repr(_pipeline(parity_dir, keep_image=True)[-1]) == 'PackPixelInputs(keep_image=True)'
