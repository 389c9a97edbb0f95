"""Tiny random models, exported once: embeddings tied or not, tokens of a user's own among them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config

from pixelsail_mm.checkpoints.checkpoint import save_weights
from pixelsail_mm.testing.tiny_models import TINY_LLM, tiny_model_config
from tests.helpers.checkpoint_cases import tiny_pixel_sail, tokenizer_with


def write_training(folder, tied, resize=None, conversation=None, **parts):
    """Config and checkpoint as a training leaves them, with projections onto experts.

    ``resize`` and ``conversation`` are further settings of the pipeline, ``parts`` of the model.
    """
    tokenizer = str(folder / 'tokenizer')
    tokenizer_with().save_pretrained(tokenizer)
    llm = TINY_LLM | dict(tie_word_embeddings=tied)
    state = tiny_pixel_sail(tied, llm=llm, **parts).state_dict()
    save_weights(state | {'distill.0.proj.weight': torch.ones(2, 2)}, folder / 'model.safetensors')
    model = tiny_model_config(tokenizer, llm, **parts)
    pipeline = [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='ResizeToGrid', patch_size=8, max_size=64, **resize or {}),
        dict(type='BuildConversation', tokenizer=tokenizer, generation=True, **conversation or {}),
        dict(type='PackPixelInputs'),
    ]
    return SimpleNamespace(
        cfg=Config(
            dict(
                model=dict(model, distill=[dict(type='ExpertDistillLoss')]), test_pipeline=pipeline
            )
        ),
        checkpoint=folder / 'model.safetensors',
    )


@pytest.fixture(scope='session')
def exports(tmp_path_factory):
    """``cfg`` and ``checkpoint`` of two trainings, the ``folder`` exported from them."""
    from pixelsail_mm.hf.export import export_hf

    results = {}
    for tied in (True, False):
        folder = tmp_path_factory.mktemp('export')
        results[tied] = write_training(folder, tied)
        results[tied].tied = tied
        results[tied].folder = export_hf(results[tied].cfg, results[tied].checkpoint, folder / 'hf')
    return results


@pytest.fixture(scope='session', params=[True, False], ids=['tied', 'untied'])
def exported(request, exports):
    """One of the exports."""
    return exports[request.param]


@pytest.fixture(scope='session')
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)


@pytest.fixture(scope='session')
def questions(image):
    """Arguments of a batch: marked region with a forced mask, plain image, text only."""
    mask = np.zeros((30, 45), bool)
    mask[5:20, 8:30] = True
    return dict(
        images=[image, image[:20], None],
        text=['Where is <Prompt2> beside <Prompt0>?', 'What is it?', 'Who are you?'],
        visual_prompts=[
            [dict(id=0, mask=mask), dict(id=2, box=[1, 2, 9, 12]), dict(id=7, point=[40, 20])],
            None,
            None,
        ],
        history=[[('Is it red?', 'Yes, it is.')], None, None],
        answer_prefix=['It is [SEG] and [SEG].', '[SEG]', None],
    )
