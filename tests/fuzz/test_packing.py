"""From samples of any layout to a batch, with one defect in a packed sample."""

import random

import numpy as np
import pytest
import torch
from hypothesis import note

from pixelsail_mm.datasets.transforms import BuildConversation, PackPixelInputs, ResizeToGrid
from pixelsail_mm.models.data_preprocessor import PixelDataPreprocessor
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.fuzz.cases import Unsaid, fuzz, outcome

LAYOUTS = ('block', 'rows')


@pytest.fixture(scope='module')
def parts():
    """Builders and preprocessors of both layouts."""
    tokenizer = byte_tokenizer()
    made = Unsaid()
    for layout in LAYOUTS:
        builders = [
            BuildConversation(tokenizer, image_layout=layout, **more)
            for more in (dict(), dict(independent_turns=True), dict(image_in_question=True))
        ]
        made[layout] = builders, PixelDataPreprocessor(tokenizer, 8, layout)
    return made


def _sample(builder, rng):
    """A packed sample of any size, prompts and turns."""
    draws = np.random.default_rng(rng.randrange(2**32))
    image, prompts = None, 0
    if rng.random() < 0.8:
        image = draws.integers(0, 256, (*draws.integers(1, 90, 2), 3), np.uint8)
        prompts = rng.randint(0, 4)
    size = image.shape[:2] if image is not None else (0, 0)
    texts = [(f'what {i}?', 'it [SEG].' if rng.random() < 0.5 else 'no.') for i in range(3)]
    texts = texts[: rng.randint(1, 3)]
    segs = sum(answer.count('[SEG]') for _, answer in texts)
    results = dict(
        img=image,
        ori_shape=size,
        prompt_masks=draws.random((prompts, *size)) < 0.3,
        prompt_ids=rng.sample(range(15), prompts),
        conversation=[dict(human=question, gpt=answer) for question, answer in texts],
        gt_masks=np.zeros((segs, *size), bool),
        meta=dict(sample_id='s7'),
    )
    resize = ResizeToGrid(8, 64, rng.choice(('long_side', 'area')))
    for stage in (resize, builder, PackPixelInputs()):
        results = stage(results)
    return results


def _other(value, rng):
    """Another tensor in the place of one of a packed sample, or something else."""
    if not isinstance(value, torch.Tensor):
        return torch.zeros(3, 8, 8, dtype=torch.uint8)
    changes = (
        lambda: None,
        lambda: value[:-1],
        lambda: value[..., :-1],
        lambda: value[:0],
        lambda: torch.cat([value, value]),
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.float(),
        lambda: value + rng.choice((1, -1, 100, 10**6)),
        lambda: value.flip(-1),
        lambda: value.tolist(),
        lambda: value.reshape(-1)[torch.randperm(value.numel())].reshape(value.shape),
    )
    return rng.choice(changes)()


def _check_batch(batch, samples, p):
    """What holds for every batch, whatever was packed."""
    inputs = batch['inputs']
    rows, length = inputs['input_ids'].shape
    assert rows == len(samples) and inputs['position_ids'].shape == (3, rows, length)
    patches = sum(h * w for h, w in inputs['grids'])
    assert inputs['vision_patches'].shape == (patches, 3 * p * p)
    assert torch.isfinite(inputs['vision_patches']).all()
    used = inputs['vision_patch_indices']
    assert torch.equal(used[used >= 0], torch.arange(patches))
    assert ((inputs['vp_token_indices'] != -1) == (used >= 0)).all()
    for row, (sample, count) in enumerate(zip(samples, inputs['lengths'])):
        assert torch.equal(inputs['input_ids'][row, :count], sample['inputs']['input_ids'])
        assert (inputs['labels'][row, count:] == -100).all()
        prompt_map = sample['inputs']['prompt_map']
        if prompt_map is not None:
            on_patches = inputs['vp_token_indices'][row][used[row] >= 0]
            assert torch.equal(on_patches, prompt_map.flatten())


@fuzz
def test_packing(parts, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    builders, preprocessor = parts[rng.choice(LAYOUTS)]
    samples = [_sample(rng.choice(builders), rng) for _ in range(rng.randint(1, 3))]
    data = dict(
        inputs=[sample['inputs'] for sample in samples],
        data_samples=[sample['data_samples'] for sample in samples],
    )
    result = preprocessor(data)
    _check_batch(result, samples, 8)
    broken = rng.choice(samples)['inputs']
    key = rng.choice(list(broken))
    old = broken[key]
    broken[key] = _other(old, rng)
    note(f'{key}: {old!r:.300} -> {broken[key]!r:.300}')
    outcome(lambda: preprocessor(data), 'of the batch')
