"""The test split of ShapesWorld as PerBench."""

import json

import numpy as np

from pixelsail_mm.datasets.readers.osprey import parse_choices
from pixelsail_mm.worlds.shapes_world.formats import perbench
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def test_three_files_about_the_test_split(world, tmp_path, world_counts):
    images = read_world(world)
    perbench.write(images, world, tmp_path, np.random.default_rng(0))
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    captions, choices, related = (
        files.pop(f'STBench_{name}.json') for name in ('Detailed_Caption', 'MCQ', 'VRES')
    )
    assert not files
    names = {image.file_name for image in images if image.split == 'test'}
    assert {entry['image_name'] for entry in captions} == names
    assert {entry['image_name'] for entry in choices} == names
    assert {entry['image_name'] for entry in related} <= names
    assert len(captions) == world_counts['test']
    letters = set()
    for question in (question for entry in choices for question in entry['mcqs']):
        options = parse_choices(question['question'])
        assert len(set(options)) == 4
        letters.add(question['answer'])
    assert letters == set('ABCD')
    for entry in related:
        tags = list(entry['segmentations'])
        asked = [tag for tag in tags if tag in entry['question']]
        positions = [entry['answer'].index(tag) for tag in tags if tag not in asked]
        assert len(asked) == 1 and positions == sorted(positions, reverse=True)


def test_the_same_generator_gives_the_same_files(mini_world, tmp_path):
    images = read_world(mini_world)
    for folder in 'ab':
        perbench.write(images, mini_world, tmp_path / folder, np.random.default_rng(7))
    for path in (tmp_path / 'a').iterdir():
        assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()
