"""ShapesWorld in our own format."""

import json

import numpy as np
import pytest

from pixelsail_mm.datasets.readers.pixel_chat import validate_pixel_chat
from pixelsail_mm.worlds.shapes_world.formats import pixel_chat
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


@pytest.fixture
def written(world, tmp_path):
    """The world and the entries of every split."""
    images = read_world(world)
    pixel_chat.write(images, world, tmp_path, np.random.default_rng(0))
    return images, {
        split: json.loads((tmp_path / f'pixel_chat_{split}.json').read_text())
        for split in ('train', 'val', 'test')
    }


def test_files_are_valid_and_decode(written, world, tmp_path):
    for split in written[1]:
        assert (
            validate_pixel_chat(
                tmp_path / f'pixel_chat_{split}.json', world / 'images', tmp_path / 'masks'
            )
            == []
        )


def test_all_that_the_format_knows_is_there(written, world_counts):
    images, splits = written
    for split, entries in splits.items():
        assert [e['image'] for e in entries if 'image' in e] == [
            image.file_name for image in images if image.split == split
        ]
    assert len([e for e in splits['train'] if 'image' not in e]) == world_counts['train'] // 8
    entries = splits['train']
    turns = [turn for entry in entries for turn in entry['turns']]
    counts = {turn['answer'].count('[SEG]') for turn in turns}
    assert {0, 1, 2} <= counts
    spellings = {
        tuple(mask) if isinstance(mask, dict) else bool(mask)
        for entry in entries
        for mask in entry.get('masks', ())
    }
    # The rest: polygons or run lengths, and the empty list.
    assert {('png',), ('png', 'ids'), ('union',), False} < spellings
    kinds = {key for entry in entries for prompt in entry.get('prompts', ()) for key in prompt}
    assert kinds == {'id', 'mask', 'box', 'point', 'scribble', 'width', 'absent'}
    keys = {key for turn in turns for key in turn}
    assert keys == {
        'question',
        'answer',
        'choices',
        'correct',
        'references',
        'expression',
        'no_target',
    }


def test_the_same_generator_gives_the_same_files(mini_world, tmp_path):
    images = read_world(mini_world)
    for folder in 'ab':
        pixel_chat.write(images, mini_world, tmp_path / folder, np.random.default_rng(7))
    for path in (tmp_path / 'a').rglob('*.*'):
        assert path.read_bytes() == (tmp_path / 'b' / path.relative_to(tmp_path / 'a')).read_bytes()
