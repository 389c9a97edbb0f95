"""The same logits before and after every way to save and load, tied and untied, with new tokens.

DeepSpeed's folders are in ``test_zero_checkpoint.py``.
"""

import json

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_weights, save_weights
from pixelsail_mm.checkpoints.conversion.official_keys import mm_to_official, official_to_mm
from pixelsail_mm.checkpoints.conversion.rewrite import convert_checkpoint
from pixelsail_mm.checkpoints.formats.safetensors_files import write_folder
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from tests.helpers.checkpoint_cases import assert_same_logits, logits_of, tiny_pixel_sail


def one_file(model, folder):
    path = folder / 'model.safetensors'
    save_weights(model.state_dict(), path, vocabulary_metadata(model.tokenizer))
    return path


def shards(model, folder):
    names = write_folder(model.state_dict(), folder, '20KB', vocabulary_metadata(model.tokenizer))
    assert len(names) > 2
    return folder


def training_checkpoint(model, folder):
    torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=3)), folder / 'iter_3.pth')
    return folder / 'iter_3.pth'


def pickled_shards(model, folder):
    state = model.state_dict()
    weight_map = {}
    for number in range(2):
        name = f'pytorch_model-0000{number + 1}-of-00002.bin'
        part = {key: state[key] for key in list(state)[number::2]}
        torch.save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / 'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map=weight_map)))
    torch.save(dict(lr=0.1), folder / 'training_args.bin')  # lies there too, holds no weights
    return folder


def official_round_trip(model, folder):
    source = one_file(model, folder)
    theirs, ours = folder / 'official.safetensors', folder / 'ours.safetensors'
    convert_checkpoint(source, theirs, mm_to_official)
    convert_checkpoint(theirs, ours, official_to_mm)
    return ours


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
    'way', [one_file, shards, training_checkpoint, pickled_shards, official_round_trip]
)
def test_logits_are_preserved(tmp_path, way, tied):
    model = tiny_pixel_sail(tied)
    expected = logits_of(model)
    target = tiny_pixel_sail(tied, seed=1)
    with pytest.raises(AssertionError):
        assert_same_logits(expected, target)
    report = load_weights(target, way(model, tmp_path), required_prefixes=[''])
    assert not (report.missing or report.unexpected or report.resized)
    assert_same_logits(expected, target)


def test_precision_of_the_model_stays(tmp_path):
    """A float32 file into a bfloat16 model, and back."""
    path = one_file(tiny_pixel_sail(True), tmp_path)
    model = tiny_pixel_sail(True, seed=1).bfloat16()
    load_weights(model, path)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    expected = tiny_pixel_sail(True).bfloat16()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, expected.backbone.state_dict()[key])


@pytest.mark.parametrize('name', ['model-00002-of', 'pytorch_model-00002-of'])
@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_damaged_shards_are_named(tmp_path, name, damage):
    from pixelsail_mm.errors import CheckpointError

    model = tiny_pixel_sail(True)
    (pickled_shards if name.startswith('py') else shards)(model, tmp_path)
    shard = next(tmp_path.glob(f'{name}*'))
    if damage == 'cut':
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        load_weights(model, tmp_path)
