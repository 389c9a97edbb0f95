"""Another backbone goes through the same folder: its settings are carried as they are."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoProcessor

import pixelsail_mm.hf  # noqa: F401  (registers the Auto classes)
from pixelsail_mm.apis import PixelSAILInferencer
from pixelsail_mm.hf.export import export_hf
from pixelsail_mm.testing.tiny_models import TINY_LLM

from .conftest import write_training

# EVEv2's image tokens by rows inside the first question, convolutional patches, Qwen's template.
EVE = dict(
    backbone=dict(type='EVETransformer', llm=TINY_LLM, patch_size=8, patch_channels=16),
    prompt_injector=dict(type='VisualPromptInjector', project=False),
    resize=dict(rule='area', interpolation='bicubic'),
    conversation=dict(template='qwen_chat', image_layout='rows', image_in_question=True),
)


@pytest.mark.parametrize('parts', [EVE], ids=['eve'])
def test_answers_are_those_of_the_original(parts, questions, tmp_path):
    training = write_training(tmp_path, True, **parts)
    folder = export_hf(training.cfg, training.checkpoint, tmp_path / 'hf')
    call = dict(
        image=questions['images'],
        text=questions['text'],
        prompts=questions['visual_prompts'],
        history=questions['history'],
        answer_prefix=questions['answer_prefix'],
    )
    before = PixelSAILInferencer(training.cfg, training.checkpoint, 'cpu')(**call)
    after = PixelSAILInferencer(folder, device='cpu')(**call)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(**questions)
    outputs = (
        AutoModelForCausalLM.from_pretrained(folder)
        .eval()
        .generate(**inputs, return_dict_in_generate=True)
    )
    texts = processor.post_process_answers(outputs.sequences, inputs)
    for row, (one, other) in enumerate(zip(before, after)):
        assert one['text'] == other['text'] == texts[row]
        np.testing.assert_array_equal(one['masks'], other['masks'])
        np.testing.assert_array_equal(one['masks'], outputs.masks[row].numpy())
