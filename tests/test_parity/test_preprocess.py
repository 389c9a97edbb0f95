"""The transforms against numbers recorded from the authors' preprocessing."""

import json

import numpy as np
import pytest
import torch

from pixelsail_mm.datasets.transforms import (
    BuildConversation,
    LoadImage,
    LoadMasks,
    LoadVisualPrompts,
    PackPixelInputs,
    ResizeToGrid,
    mask_to_patches,
    target_size,
)

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)


@pytest.fixture(scope='module')
def config(parity_dir):
    return json.loads((parity_dir / 'model_config.json').read_text())


@pytest.fixture(scope='module')
def arrays(parity_dir):
    with np.load(parity_dir / 'preprocess.npz') as file:
        return dict(file)


def _load(parity_dir, name):
    with np.load(parity_dir / f'{name}.npz') as file:
        return dict(file)


def _normalised_patches(image, patch):
    """uint8 (3, H, W) -> float32 (h, w, 3, p, p), as the model sees it."""
    image = (image.astype(np.float32) / 255 - MEAN) / STD
    channels, height, width = image.shape
    image = image.reshape(channels, height // patch, patch, width // patch, patch)
    return image.transpose(1, 3, 0, 2, 4)


@pytest.mark.parametrize('patch', [16, 32])
def test_target_sizes(parity_dir, patch):
    recorded = json.loads((parity_dir / 'preprocess.json').read_text())
    assert len(recorded['resize']) > 0
    for item in recorded['resize']:
        expected = tuple(max(side, patch) for side in item[f'patch{patch}'])
        assert target_size(*item['size'], patch, recorded['max_resolution']) == expected, item


def test_image_patches(arrays):
    names = [key for key in arrays if key.startswith('image_') and not key.endswith('_patches')]
    assert names
    for name in names:
        expected = arrays[f'{name}_patches']
        patch = expected.shape[-1]
        results = ResizeToGrid(patch)(dict(img=arrays[name]))
        assert results['grid'] == expected.shape[:2]
        np.testing.assert_allclose(
            _normalised_patches(results['image'], patch), expected, atol=1e-6, rtol=0, err_msg=name
        )


def test_mask_patches(arrays, config):
    patch = config['hyper_parameters']['vision_patch_size']
    names = [key for key in arrays if key.startswith('mask_') and not key.endswith('_patches')]
    assert names
    for name in names:
        expected = arrays[f'{name}_patches']
        flags = mask_to_patches(arrays[name] != 0, expected.shape, patch)
        if expected.any():
            assert np.array_equal(flags, expected), name
        else:
            assert flags.sum() == arrays[name].any(), name


def test_prompt_patches(parity_dir, config):
    """The prompts of the recorded forward pass, in the order they were given there."""
    recorded = _load(parity_dir, 'forward_1img')
    patch = config['hyper_parameters']['vision_patch_size']
    masks, ids = recorded['vp_masks'] != 0, recorded['vp_ids'].tolist()
    results = ResizeToGrid(patch)(dict(img=recorded['image'], prompt_masks=masks, prompt_ids=ids))
    patches = recorded['vision_patch_indices'][0] >= 0
    expected = recorded['vp_token_indices'][0][patches]
    assert results['prompt_map'].ravel().tolist() == expected.tolist()
    for mask, flags in zip(masks, recorded['vp_mask_patches']):
        assert np.array_equal(mask_to_patches(mask, results['grid'], patch), flags)


class _Release:
    """Recovers turns and records from the recorded token ids."""

    def __init__(self, config, tokenizer):
        self.template = config['prompt_template']
        self.suffix = config['answer_suffix']
        self.tokenizer = tokenizer

    def turns(self, input_ids, labels):
        """Split at the borders between labelled and unlabelled runs, then decode."""
        start, end = self.template.split('{input}')
        image_end = np.flatnonzero(input_ids == self.tokenizer.convert_tokens_to_ids('</vision>'))
        runs = np.split(np.arange(len(input_ids)), np.flatnonzero(np.diff(labels >= 0)) + 1)
        texts = []
        for run in runs:
            ids = [i for i in run if not len(image_end) or i > image_end[0]]
            texts.append(self.tokenizer.decode(input_ids[ids]))
        turns = []
        for question, answer in zip(texts[::2], texts[1::2]):
            assert question.startswith(start) and question.endswith(end), question
            assert answer.endswith(self.suffix), answer
            turns.append(
                dict(human=question[len(start) : -len(end)], gpt=answer[: -len(self.suffix)])
            )
        return turns


@pytest.mark.parametrize(
    'name',
    ['forward_1img', 'forward_1img_tied_preproj', 'forward_noseg', 'batch2', 'batch3_textonly'],
)
def test_training_tokens(parity_dir, config, name):
    """Ids and labels of the release, from the text that its ids decode to."""
    recorded = _load(parity_dir, name)
    transform = BuildConversation(str(parity_dir / 'tokenizer'))
    release = _Release(config, transform.tokenizer)
    lengths = recorded.get('lengths', [recorded['input_ids'].shape[1]])
    for row, length in enumerate(lengths):
        input_ids = recorded['input_ids'][row, :length]
        labels = recorded['labels'][row, :length]
        turns = release.turns(input_ids, labels)
        n_seg = sum(turn['gpt'].count('[SEG]') for turn in turns)
        results = transform(
            dict(
                conversation=turns,
                grid=tuple(recorded['patch_nums_per_images'][row].tolist()),
                gt_masks=np.zeros((n_seg, 1, 1), bool),
            )
        )
        assert results['input_ids'].tolist() == input_ids.tolist()
        assert results['labels'].tolist() == labels.tolist()


@pytest.mark.parametrize('name', ['prefix', 'vp', 'free', 'noseg'])
def test_generation_prompts(parity_dir, config, name):
    """The whole pipeline, from image, user text and prompt masks to the recorded prompt ids."""
    recorded = {
        key.split('/', 1)[1]: value
        for key, value in _load(parity_dir, 'generate').items()
        if key.startswith(f'{name}/')
    }
    case = json.loads((parity_dir / 'generate.json').read_text())[name]
    patch = config['hyper_parameters']['vision_patch_size']
    prompts = [
        dict(id=k, mask=mask)
        for k, mask in zip(case['kw'].get('prompt_ids', []), recorded.get('prompt_masks', []))
    ]
    results = dict(
        img=recorded['image'], prompts=prompts, conversation=[dict(human=case['text'], gpt='')]
    )
    if 'prefix_answer' in case['kw']:
        results['answer_prefix'] = case['kw']['prefix_answer']
    # The release's inference does not sort prompts; training, and our default, do.
    for transform in (
        LoadImage(),
        LoadMasks(),
        LoadVisualPrompts(sort_by_area=False),
        ResizeToGrid(patch),
        BuildConversation(str(parity_dir / 'tokenizer'), generation=True),
        PackPixelInputs(),
    ):
        results = transform(results)
    inputs = results['inputs']
    assert inputs['input_ids'].tolist() == recorded['prompt_ids'][0].tolist()
    if 'vision_patches' in recorded:
        patches = _normalised_patches(inputs['image'].numpy(), patch)
        np.testing.assert_allclose(
            patches.reshape(len(recorded['vision_patches']), -1),
            recorded['vision_patches'],
            atol=1e-6,
            rtol=0,
        )
    if prompts:
        is_patch = torch.from_numpy(recorded['vision_patch_indices'][0] >= 0)
        expected = torch.from_numpy(recorded['vp_token_indices'][0])[is_patch]
        assert torch.equal(inputs['prompt_map'].flatten(), expected)


def test_unstripped_protocol_keeps_the_leading_space(parity_dir):
    r"""The release's evaluation sends ``<image>\n Please ...`` and keeps the blank."""
    record = dict(
        conversation=[dict(human='<image>\n Please segment the dog.', gpt='')], grid=(0, 0)
    )
    texts = []
    for strip in (True, False):
        transform = BuildConversation(str(parity_dir / 'tokenizer'), generation=True, strip=strip)
        texts.append(transform.tokenizer.decode(transform(dict(record))['input_ids']))
    assert texts == [
        f'<|im_start|>user\n{blank}Please segment the dog.<|im_end|>\n' for blank in ('', ' ')
    ]
