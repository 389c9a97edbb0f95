"""ShapesWorld as MUSE."""

import json

import numpy as np

from pixelsail_mm.worlds.shapes_world.formats import muse
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def write(world, out, seed=0):
    images = read_world(world)
    muse.write(images, world, out, np.random.default_rng(seed))
    return images, {
        split: json.loads((out / f'MUSE_{split}.json').read_text())
        for split in ('train', 'val', 'test')
    }


def test_public_layout(world, tmp_path, world_counts):
    images, files = write(world, tmp_path)
    assert {split: len(entries) for split, entries in files.items()} == world_counts
    names = {image.image_id: image.file_name for image in images}
    places = dict(train2014='', train2017='train/', val2017='val/')
    used = {split: set() for split in files}
    for split, entries in files.items():
        for entry in entries:
            place = ['', 'train2014', entry.get('file_name')]
            if 'coco_url' in entry:
                place = entry['coco_url'].split('/')[2:]
            assert places[place[1]] + place[2] == names[entry['image_id']]
            used[split].add(place[1])
    assert used == dict(train={'train2014', 'train2017'}, val={'val2017'}, test={'train2014'})


def test_questions_answers_and_texts_agree(world, tmp_path):
    images, files = write(world, tmp_path)
    objects = {image.image_id: image.objects for image in images}
    counts, rephrased, told = set(), set(), set()
    for entry in (entry for entries in files.values() for entry in entries):
        assert entry['ann_list'] and len(entry['questions']) == len(entry['answers'])
        told.add('text_answers' in entry)
        texts = entry.get('text_answers', [None] * len(entry['answers']))
        for question, answers, text in zip(
            entry['questions'], entry['answers'], texts, strict=True
        ):
            counts.add(len(answers))
            assert text is None or text.count('{seg}') == len(answers)
            for answer in answers:
                (owner,) = [
                    item
                    for item in objects[entry['image_id']]
                    if item.segmentation == answer['segmentation']
                ]
                assert answer['category_name'] == owner.attributes['kind']
                name = answer.get('rephrased_name')
                rephrased.add(name is not None)
                assert name is None or (name in owner.sentences and name in question)
    assert {1, 2} <= counts and rephrased == told == {True, False}


def test_the_seed_decides(mini_world, tmp_path):
    one, same, other = (
        write(mini_world, tmp_path / str(i), seed)[1] for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other
