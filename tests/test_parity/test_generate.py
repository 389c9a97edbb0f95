"""Generation against recorded greedy answers: ids and masks exact."""

import json

import pytest
import torch
from torch import nn

from pixelsail_mm.structures import PixelDataSample
from tests.helpers.parity import ParityFixtures

CASES = ['prefix', 'vp', 'free', 'noseg']


@pytest.fixture(scope='module')
def fixtures(parity_dir):
    return ParityFixtures(parity_dir)


@pytest.fixture(scope='module')
def model(fixtures):
    return fixtures.build().eval()


@pytest.fixture
def override_seg_row(fixtures, model):
    """The ``free`` case was recorded with another ``[SEG]`` row of the language head."""
    recorded = fixtures.arrays('generate')
    seg = fixtures.config['token_ids']['seg_token_id']
    weight = model.backbone.llm.lm_head.weight
    original = weight[seg].detach().clone()

    def apply():
        with torch.no_grad():
            weight[seg] = recorded['free/lm_head_seg_row_override']

    yield apply
    with torch.no_grad():
        weight[seg] = original


def _case(fixtures, name):
    arrays = {
        key.split('/', 1)[1]: value
        for key, value in fixtures.arrays('generate').items()
        if key.startswith(f'{name}/')
    }
    meta = json.loads((fixtures.root / 'generate.json').read_text())[name]
    return arrays, meta


def _sample_inputs(fixtures, model, arrays, meta):
    """One sample for the data preprocessor: real ids, image resized by PIL, prompt map."""
    import numpy as np
    from PIL import Image

    ids = fixtures.config['token_ids']
    input_ids = arrays['prompt_ids'][0]
    forced = len(
        model.tokenizer(meta['kw'].get('prefix_answer', ''), add_special_tokens=False)['input_ids']
    )
    labels = torch.full_like(input_ids, -100)
    if forced:
        labels[-forced:] = input_ids[-forced:]
    sizes = [
        item
        for item in json.loads((fixtures.root / 'preprocess.json').read_text())['resize']
        if item['size'] == [arrays['image'].shape[1], arrays['image'].shape[0]]
    ]
    patch = fixtures.config['hyper_parameters']['vision_patch_size']
    if sizes:
        width, height = sizes[0][f'patch{patch}']
    else:
        from pixelsail_mm.datasets.transforms.grid import target_size

        width, height = target_size(arrays['image'].shape[1], arrays['image'].shape[0], patch)
    image = Image.fromarray(arrays['image'].numpy()).resize((width, height), Image.BILINEAR)
    prompt_map = None
    if 'vp_token_indices' in arrays:
        patches = arrays['vision_patch_indices'][0] >= 0
        prompt_map = arrays['vp_token_indices'][0][patches].view(height // patch, width // patch)
    assert (input_ids == ids['vpatch_id']).sum() > 0
    return dict(
        input_ids=input_ids,
        labels=labels,
        prompt_map=prompt_map,
        image=torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous(),
    )


def _data_sample(arrays):
    return PixelDataSample(metainfo=dict(ori_shape=tuple(arrays['image'].shape[:2])))


@pytest.mark.parametrize('name', CASES)
def test_greedy_answer(fixtures, model, name, override_seg_row):
    if name == 'free':
        override_seg_row()
    arrays, meta = _case(fixtures, name)
    batch = model.data_preprocessor(
        dict(
            inputs=[_sample_inputs(fixtures, model, arrays, meta)],
            data_samples=[_data_sample(arrays)],
        )
    )
    if 'vision_patches' in arrays:
        torch.testing.assert_close(
            batch['inputs']['vision_patches'], arrays['vision_patches'], atol=1e-5, rtol=1e-5
        )
        assert torch.equal(batch['inputs']['position_ids'], arrays['position_ids'])
    sample = model.predict(**batch, max_new_tokens=meta['max_new_tokens'])[0]
    assert sample.pred_token_ids.tolist() == arrays['new_ids'].tolist()
    assert len(sample.pred_masks) == meta['n_seg']
    if meta['n_seg']:
        assert torch.equal(sample.pred_masks, arrays['masks'])


@pytest.mark.parametrize('name', CASES)
def test_step_logits(fixtures, model, name, override_seg_row):
    """One teacher-forced pass over the recorded sequence gives every step's logits."""
    if name == 'free':
        override_seg_row()
    arrays, meta = _case(fixtures, name)
    sample = _sample_inputs(fixtures, model, arrays, meta)
    prompt = len(sample['input_ids'])
    sample['input_ids'] = torch.cat([sample['input_ids'], arrays['new_ids']])
    sample['labels'] = torch.full_like(sample['input_ids'], -100)
    batch = model.data_preprocessor(dict(inputs=[sample]))
    with torch.no_grad():
        logits = model(batch['inputs'], mode='tensor')['logits'][0]
    torch.testing.assert_close(logits[prompt - 1 : -1], arrays['step_logits'], atol=1e-4, rtol=1e-4)


def test_batched_answers_equal_single_ones(fixtures, model):
    """Prompts of different lengths and images of different sizes in one batch."""
    samples, references, expected = [], [], []
    for name in ('prefix', 'vp', 'noseg'):
        arrays, meta = _case(fixtures, name)
        samples.append(_sample_inputs(fixtures, model, arrays, meta))
        references.append(_data_sample(arrays))
        expected.append((arrays, meta))
    batch = model.data_preprocessor(dict(inputs=samples, data_samples=references))
    for sample, (arrays, meta) in zip(
        model.predict(**batch, max_new_tokens=expected[0][1]['max_new_tokens']), expected
    ):
        assert sample.pred_token_ids.tolist() == arrays['new_ids'].tolist()
        assert len(sample.pred_masks) == meta['n_seg']
        if meta['n_seg']:
            assert torch.equal(sample.pred_masks, arrays['masks'])


def test_text_only_prompt_is_answered(model):
    ids = torch.tensor(
        model.tokenizer('<|im_start|>user\nhi<|im_end|>\n', add_special_tokens=False)['input_ids']
    )
    batch = model.data_preprocessor(
        dict(
            inputs=[dict(input_ids=ids, labels=torch.full_like(ids, -100), image=None)],
            data_samples=[PixelDataSample()],
        )
    )
    sample = model.predict(**batch, max_new_tokens=4)[0]
    assert isinstance(sample.pred_text, str)
    assert len(sample.pred_masks) == 0


def test_positions_and_layout(fixtures, model):
    """Positions and the attention the block layout stands for, five grids."""
    from pixelsail_mm.models.data_preprocessor import position_ids
    from tests.helpers.attention import dense_mask

    arrays = fixtures.arrays('positions_masks')
    ids = fixtures.config['token_ids']
    cases = sorted({key.split('/')[0] for key in arrays})
    assert cases
    for case in cases:
        row = arrays[f'{case}/input_ids']
        grid = tuple(arrays[f'{case}/hw'].tolist())
        start = torch.nonzero(row == ids['vision_start_id']).flatten()
        end = torch.nonzero(row == ids['vision_end_id']).flatten()
        first = int(start[0]) if len(start) else None
        assert torch.equal(position_ids(len(row), first, grid), arrays[f'{case}/position_ids'])
        span = (0, first, int(end[0]) + 1) if len(start) else (0, 0, 0)
        assert torch.equal(dense_mask(span, len(row)), arrays[f'{case}/attention_mask'])


def test_seg_as_last_token_has_a_mask(fixtures, model):
    """A ``[SEG]`` cut off by the length limit still gets its mask."""
    arrays, meta = _case(fixtures, 'noseg')
    seg = fixtures.config['token_ids']['seg_token_id']
    batch = model.data_preprocessor(
        dict(
            inputs=[_sample_inputs(fixtures, model, arrays, meta)],
            data_samples=[_data_sample(arrays)],
        )
    )
    head = model.backbone.llm.lm_head

    class ForceSeg(nn.Module):
        def forward(self, states):
            logits = head(states)
            logits[..., seg] = logits.max() + 1
            return logits

    model.backbone.llm.lm_head = ForceSeg()
    try:
        sample = model.predict(**batch, max_new_tokens=1)[0]
    finally:
        model.backbone.llm.lm_head = head
    assert sample.pred_token_ids.tolist() == [seg]
    assert len(sample.pred_masks) == 1
