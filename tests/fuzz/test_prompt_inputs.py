"""What users ask the inferencer, with one defect."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import note
from PIL import Image

from pixelsail_mm.apis.input_pipeline import InputPipeline
from pixelsail_mm.apis.inputs import make_record
from pixelsail_mm.datasets.transforms import (
    BuildConversation,
    LoadImage,
    LoadMasks,
    LoadVisualPrompts,
    PackPixelInputs,
    ResizeToGrid,
)
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.fuzz.cases import fuzz, outcome
from tests.fuzz.defects import TEXTS, damage

H, W = 24, 30
_PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
_MASK = np.zeros((H, W), bool)
_MASK[3:9, 4:10] = True
IMAGES = {
    'array': lambda: _PIXELS,
    'grey': lambda: _PIXELS[..., 0],
    'rgba': lambda: np.dstack([_PIXELS, _PIXELS[..., :1]]),
    'pil': lambda: Image.fromarray(_PIXELS),
    'palette': lambda: Image.fromarray(_PIXELS).convert('P'),
    'deep': lambda: Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 200),
    'none': lambda: None,
    'float': lambda: _PIXELS / 255,
    'int': lambda: _PIXELS.astype(int),
    'empty': lambda: _PIXELS[:0],
    'thin': lambda: _PIXELS[:1, :1],
    'four axes': lambda: _PIXELS[None],
    'channels first': lambda: _PIXELS.transpose(2, 0, 1),
    'tensor': lambda: torch.from_numpy(_PIXELS),
    'not there': lambda: '/no/such/file.png',
    'folder': lambda: '/',
    'nul': lambda: 'a\x00b.png',
    'long name': lambda: 'x' * 5000,
    'bytes': lambda: b'\x89PNG',
    'file': lambda: io.BytesIO(b'\x89PNG'),
    'list': lambda: _PIXELS.tolist(),
    'number': lambda: 3,
    'closed': lambda: _closed(),
    'objects': lambda: _PIXELS.astype(object),
    'not finite': lambda: Image.fromarray(np.full((H, W), np.nan, np.float32)),
}
PROMPTS = (
    lambda: [[2, 3, 9, 12], (5, 6)],
    lambda: np.array([[1, 2, 3, 4]]),
    lambda: torch.tensor([[1, 2], [3, 4]]),
    lambda: [_MASK, dict(id=7, mask=torch.from_numpy(_MASK))],
    lambda: np.stack([_MASK, ~_MASK]),
    lambda: [Image.fromarray(_MASK)],
    lambda: [dict(id=2, scribble=[[1, 1], [9, 9], [20, 3]], width=2), dict(id=3, point=[4, 5])],
    lambda: [dict(box=[1, 1, 5, 5])],
    lambda: [dict(id=1, mask=dict(size=[H, W], counts=[100, 20, H * W - 120]))],
    lambda: [dict(id=1, mask=[[1, 1, 9, 1, 9, 9]])],
    lambda: None,
)
# Arrays that are no prompts, or hardly.
ODD = (
    lambda: np.zeros((2, H, W)),
    lambda: np.zeros((1, 4), object),
    lambda: np.full((1, 4), np.nan),
    lambda: np.full((1, 2), 1e300),
    lambda: np.zeros((0, 4)),
    lambda: np.zeros((20, H, W), bool) + True,
    lambda: np.array([['a', 'b']]),
    lambda: np.array([[1 + 2j, 3]]),
    lambda: torch.zeros(2, 2, 2, 2),
    lambda: torch.full((1, 4), float('inf')),
    lambda: torch.zeros(1, 4, requires_grad=True),
    lambda: torch.zeros(2, 2).to_sparse(),
    lambda: [Image.new('RGB', (W, H))],
    lambda: [_MASK[:5]],
    lambda: [np.zeros((W, H), bool)],
    lambda: (prompt for prompt in [[1, 2]]),
    lambda: {(1, 2), (3, 4)},
    lambda: 5,
    lambda: [np.datetime64('2020-01-01')],
)


def _closed():
    image = Image.fromarray(_PIXELS)
    image.close()
    return image


@pytest.fixture(scope='module')
def pipeline():
    return InputPipeline(
        [
            LoadImage(),
            LoadMasks(),
            LoadVisualPrompts(),
            ResizeToGrid(patch_size=8, max_size=64),
            BuildConversation(byte_tokenizer(), generation=True, max_length=300),
            PackPixelInputs(),
        ]
    )


def _valid(rng):
    prompts = rng.choice(PROMPTS)()
    given = list(prompts) if prompts is not None else []
    ids = [prompt.get('id', i) if isinstance(prompt, dict) else i for i, prompt in enumerate(given)]
    named = ' '.join(f'<Prompt{k}>' for k in ids)
    return dict(
        image=_PIXELS,
        text=f'What is {named} here?',
        prompts=prompts,
        history=rng.choice((None, [('what?', 'a dog'), dict(human='where?', gpt='here [SEG].')])),
        answer_prefix=rng.choice((None, '', 'It is [SEG].')),
    )


def _damaged(asked, rng):
    """One argument with a defect."""
    key = rng.choice(('image', 'text', 'prompts', 'prompts', 'prompts', 'history', 'answer_prefix'))
    if key == 'image':
        name = rng.choice(list(IMAGES))
        return dict(asked, image=IMAGES[name]()), f'image: {name}'
    if key == 'prompts' and rng.random() < 0.3:
        odd = rng.choice(ODD)()
        return dict(asked, prompts=odd), f'prompts: {odd!r:.200}'
    if isinstance(asked[key], str) and rng.random() < 0.5:
        i = rng.randint(0, len(asked[key]))
        text = asked[key][:i] + rng.choice(TEXTS) + asked[key][i:]
        return dict(asked, **{key: text}), f'{key}: {text!r:.200}'
    value, _, said = damage(_plain(asked[key]), rng)
    return dict(asked, **{key: value}), f'{key}: {said}'


def _plain(value):
    """Arrays of boxes as lists, so that a defect can be in them."""
    return value.tolist() if hasattr(value, 'tolist') and value.ndim == 2 else value


@fuzz
def test_questions(pipeline, seed):
    rng = random.Random(seed)
    asked, said = _damaged(_valid(rng), rng)
    note(said)
    result = outcome(lambda: pipeline(make_record('input 3', **asked)), 'input 3', *_paths(asked))
    if not isinstance(result, Exception):
        inputs, sample = result['inputs'], result['data_samples']
        assert len(inputs['input_ids']) == len(inputs['labels']) <= 300
        ids = sample.prompt_ids.tolist()
        assert len(set(ids)) == len(ids) == len(sample.prompt_masks) and set(ids) <= set(range(15))
        assert sample.prompt_masks.flatten(1).any(1).all()
        if ids:
            assert set(inputs['prompt_map'].unique().tolist()) <= {-2, *ids}


def _paths(asked):
    # A long one is cut in the middle.
    return [asked['image'][:100]] if isinstance(asked['image'], str) else []
