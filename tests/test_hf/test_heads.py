"""A second head in an exported folder: exported, opened by both sides, answered alike."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.apis import PixelSAILInferencer
from pixelsail_mm.hf import PixelSAILForCausalLM, PixelSAILProcessor
from pixelsail_mm.hf.export import export_hf
from tests.test_hf.conftest import write_training
from tests.test_models.test_heads import point_head  # noqa: F401  registers the head

HEADS = dict(heads=dict(point=dict(type='PointHead')))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('heads')
    training = write_training(folder, True, **HEADS)
    return export_hf(training.cfg, training.checkpoint, folder / 'hf')


def test_every_head_answers_from_the_exported_folder(folder, image):
    ask = PixelSAILInferencer(str(folder))
    ours = ask(image, 'where?', answer_prefix='[SEG] and [SEG].', max_new_tokens=1)
    assert ours['points'].shape == (2, 2) and ours['points'].dtype == np.float32
    processor = PixelSAILProcessor.from_pretrained(folder)
    model = PixelSAILForCausalLM.from_pretrained(folder)
    inputs = processor(
        images=Image.fromarray(image), text='where?', answer_prefix='[SEG] and [SEG].'
    )
    output = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    torch.testing.assert_close(output.predictions[0]['points'], torch.from_numpy(ours['points']))
    np.testing.assert_array_equal(output.masks[0].numpy(), ours['masks'])
    assert '`PointHead`' in (folder / 'README.md').read_text()


def test_without_other_heads_there_are_no_further_predictions(exported, image):
    model = PixelSAILForCausalLM.from_pretrained(exported.folder)
    processor = PixelSAILProcessor.from_pretrained(exported.folder)
    inputs = processor(images=Image.fromarray(image), text='where?')
    output = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    assert output.predictions is None
