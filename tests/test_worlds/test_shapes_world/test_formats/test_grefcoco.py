"""ShapesWorld as gRefCOCO."""

import json
from collections import Counter

import numpy as np

from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.worlds.shapes_world.formats import grefcoco
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def write(world, out, seed=0):
    images = read_world(world)
    grefcoco.write(images, world, out, np.random.default_rng(seed))
    return images, json.loads((out / 'grefs(unc).json').read_text())


def test_public_layout(world, tmp_path):
    images, refs = write(world, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'grefs(unc).json',
        'grefs(unc).p',
        'instances.json',
    ]
    instances = json.loads((tmp_path / 'instances.json').read_text())
    assert [i['file_name'] for i in instances['images']] == [i.file_name for i in images]
    assert {a['id'] for a in instances['annotations']} == {
        item.ann_id for image in images for item in image.objects
    }
    assert load_plain_pickle(tmp_path / 'grefs(unc).p') == refs
    for ref in refs:
        assert len(ref['category_id']) == len(ref['ann_id'])
        assert ref['no_target'] == (ref['ann_id'] == [-1]) == (-1 in ref['ann_id'])
        assert all(s['raw'] == s['sent'] == ' '.join(s['tokens']) for s in ref['sentences'])
    numbers = [s['sent_id'] for ref in refs for s in ref['sentences']]
    assert numbers == [n for ref in refs for n in ref['sent_ids']]
    assert len(set(numbers)) == len(numbers)


def test_every_split_has_single_many_and_no_targets(world, tmp_path):
    _, refs = write(world, tmp_path)
    for split in ('train', 'val', 'testA', 'testB'):
        kinds = Counter(
            'none' if ref['no_target'] else min(len(ref['ann_id']), 2)
            for ref in refs
            if ref['split'] == split
        )
        assert set(kinds) == {'none', 1, 2}


def test_groups_of_the_world_keep_their_sentences(world, tmp_path):
    images, refs = write(world, tmp_path)
    written = {(ref['image_id'], s['raw']): ref['ann_id'] for ref in refs for s in ref['sentences']}
    groups = [(image, group) for image in images for group in image.groups]
    for image, group in groups:
        ids = [image.objects[i].ann_id for i in group.members]
        assert written[image.image_id, group.sentence] == ids


def test_the_seed_decides(mini_world, tmp_path):
    refs = [write(mini_world, tmp_path / str(i), seed)[1] for i, seed in enumerate((0, 0, 1))]
    assert refs[0] == refs[1] != refs[2]
    files = [(tmp_path / str(i) / 'grefs(unc).p').read_bytes() for i in (0, 1)]
    assert files[0] == files[1]
