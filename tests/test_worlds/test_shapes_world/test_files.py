"""A ShapesWorld data set on disk: formats, truth of every text, determinism, safety."""

import filecmp
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.evaluation.metrics.multiple_choice_metric import extract_choice
from pixelsail_mm.worlds.shapes_world import PRESETS, make_shapes_world
from pixelsail_mm.worlds.shapes_world.expressions import Expression, Filter, evaluate, parse
from pixelsail_mm.worlds.shapes_world.questions import MCQ_SUFFIX, NUMBERS
from pixelsail_mm.worlds.shapes_world.scene import SceneObject


def read_json(path):
    return json.loads(path.read_text())


def load_scenes(world):
    """File name -> objects, rebuilt from the annotation file alone."""
    instances = read_json(world / 'refcoco/instances.json')
    images = {image['id']: image for image in instances['images']}
    scenes = {image['file_name']: [] for image in instances['images']}
    owner = {}
    for ann in instances['annotations']:
        image = images[ann['image_id']]
        mask = decode_mask(ann['segmentation'], image['height'], image['width'], None, 'mask')
        scene = scenes[image['file_name']]
        owner[ann['id']] = (image['file_name'], len(scene))
        scene.append(SceneObject.from_mask(ann['attributes'], mask))
        assert ann['area'] == mask.sum()
    return scenes, owner


def image_size(world):
    return read_json(world / 'info.json')['image_size']


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_every_written_sentence_denotes_its_annotation_only(world):
    scenes, owner = load_scenes(world)
    refs = load_plain_pickle(world / 'refcoco/refs(unc).p')
    assert len(refs) > 100
    for ref in refs:
        file_name, index = owner[ref['ann_id']]
        assert file_name == ref['file_name'] and file_name.startswith(ref['split'])
        for sentence in ref['sentences']:
            expression = parse(sentence['raw'])
            assert sentence['kind'] == expression.category
            assert sentence['tokens'] == sentence['raw'].split()
            assert evaluate(expression, scenes[file_name], image_size(world)) == {index}


def test_groups_are_the_union_of_their_members_and_train_only(world):
    scenes, _ = load_scenes(world)
    instances = read_json(world / 'refcoco_group/instances.json')
    names = {image['id']: image['file_name'] for image in instances['images']}
    annotations = {ann['id']: ann for ann in instances['annotations']}
    size = image_size(world)
    for ref in load_plain_pickle(world / 'refcoco_group/refs(unc).p'):
        assert ref['split'] == 'train'
        objects = scenes[names[ref['image_id']]]
        annotation = annotations[ref['ann_id']]
        mask = decode_mask(annotation['segmentation'], size, size, None, 'mask')
        for sentence in ref['sentences']:
            members = evaluate(parse(sentence['raw']), objects, size)
            assert members == set(annotation['members'])
            assert (np.logical_or.reduce([objects[i].mask for i in members]) == mask).all()


def test_evaluation_shares_follow_the_preset(world, world_counts):
    info = read_json(world / 'info.json')
    preset = PRESETS[info['preset']]
    refs = [r for r in load_plain_pickle(world / 'refcoco/refs(unc).p') if r['split'] == 'test']
    kinds = [s['kind'] for ref in refs for s in ref['sentences']]
    number = world_counts['test'] * preset.eval_refs_per_image
    cycle = [preset.eval_cycle[i % len(preset.eval_cycle)] for i in range(number)]
    assert Counter(kinds) == Counter(cycle) == Counter(info['sentences']['test'])


def _right_choices(record, objects, index, size):
    """Positions of the options that are true, worked out from the annotations."""
    question, item = record['conversations'][0]['value'], objects[index]
    about = record['about']
    if about in ('colour', 'kind', 'texture'):
        return [i for i, c in enumerate(record['choices']) if c == getattr(item, about)]
    filters = [parse('the ' + c.split(' ', 1)[1]).target for c in record['choices']]
    if about == 'description':
        return [i for i, f in enumerate(filters) if f.matches(item)]
    relation = re.search(r'object is (.+?) <region', question).group(1)
    anchor = Filter(item.size, item.texture, item.colour, item.kind)
    holding = evaluate(Expression(Filter(), relation=relation, anchor=anchor), objects, size)
    return [i for i, f in enumerate(filters) if any(f.matches(objects[j]) for j in holding)]


def test_multiple_choice_has_exactly_one_right_option(world):
    scenes, _ = load_scenes(world)
    size = image_size(world)
    letters = Counter()
    for record in read_json(world / 'osprey/osprey_test.json'):
        question, answer = record['conversations']
        objects = scenes[record['file_name']]
        index = int(re.search(r'<region(\d+)>', question['value']).group(1)) - 1
        for item, annotation in zip(objects, record['annotation'], strict=True):
            mask = decode_mask(annotation['segmentation'], size, size, None, 'mask')
            assert (mask == item.mask).all()
        assert len(set(record['choices'])) == 4
        assert all(
            f'{letter}. {choice}' in question['value']
            for letter, choice in zip('ABCD', record['choices'])
        )
        assert _right_choices(record, objects, index, size) == ['ABCD'.index(record['answer'])]
        assert extract_choice(answer['value'], record['choices']) == record['answer']
        letters[record['answer']] += 1
    assert len(letters) == 4


def test_region_descriptions_are_true(world):
    scenes, _ = load_scenes(world)
    checked = Counter()
    for record in read_json(world / 'osprey/osprey_train.json'):
        turns = [turn['value'] for turn in record['conversations']]
        for question, answer in zip(turns[::2], turns[1::2]):
            index = int(re.search(r'<region(\d+)>', question).group(1)) - 1
            item = scenes[record['file_name']][index]
            if answer.startswith(('a ', 'an ')):
                assert parse('the ' + answer.split(' ', 1)[1]).target.matches(item)
                checked['description'] += 1
            elif MCQ_SUFFIX not in question:
                name = re.search('What is the (.+) of', question).group(1)
                assert answer == f'It is {getattr(item, dict(shape="kind").get(name, name))}.'
                checked[name] += 1
    assert checked['description'] > 50 and {'colour', 'shape'} < set(checked)


def test_scene_answers_are_true(world):
    scenes, _ = load_scenes(world)
    size = image_size(world)
    seen = Counter()
    for record in read_json(world / 'llava/llava_test.json'):
        objects = scenes[record['image']]
        turns = [turn['value'].removeprefix('<image>\n') for turn in record['conversations']]
        for question, answer in zip(turns[::2], turns[1::2]):
            if question.startswith('How many'):
                group = re.search('How many (.+) are there', question).group(1)
                group = re.sub('(?<=cross)es$|s$', '', group)
                members = evaluate(parse(f'every {group}'), objects, size)
                assert answer == NUMBERS[len(members)]
                seen['count'] += 1
            elif question.startswith('Is there'):
                phrase = re.search('Is there an? (.+) in this', question).group(1)
                found = evaluate(parse(f'the {phrase}'), objects, size)
                assert answer == ('yes' if found else 'no')
                seen[answer] += 1
            elif re.match('What (colour|shape) is', question):
                expression = parse(re.search('is (the .+)\\?', question).group(1))
                (index,) = evaluate(expression, objects, size)
                assert answer in (objects[index].colour, objects[index].kind)
                seen['attribute'] += 1
            else:
                assert answer.startswith('There is ') and answer.count(',') == len(objects) - 1
                seen['scene'] += 1
    assert all(seen[kind] for kind in ('count', 'yes', 'no', 'attribute', 'scene'))


def test_a_few_instruction_items_are_text_only(mini_world, world_counts):
    records = read_json(mini_world / 'llava/llava_train.json')
    text_only = [record for record in records if 'image' not in record]
    assert len(records) == world_counts['train'] + len(text_only) and text_only
    assert not any('<image>' in t['value'] for r in text_only for t in r['conversations'])


def test_images_exist_and_no_two_are_alike(world, world_counts):
    info = read_json(world / 'info.json')
    hashes = Counter()
    for split, count in world_counts.items():
        paths = sorted((world / 'images' / split).iterdir())
        assert len(paths) == count == info['images'][split]
        for path in paths:
            image = cv2.imread(str(path))
            assert image.shape == (info['image_size'], info['image_size'], 3)
            hashes[hashlib.sha256(image.tobytes()).hexdigest()] += 1
    assert len(hashes) == sum(world_counts.values())


def test_polygons_or_run_lengths(mini_world, full_world):
    for folder, kind in ((mini_world, list), (full_world, dict)):
        annotations = read_json(folder / 'refcoco/instances.json')['annotations']
        assert all(isinstance(ann['segmentation'], kind) for ann in annotations)


def test_equal_arguments_give_equal_bytes_whatever_the_workers(tmp_path):
    counts = {'train': 40, 'val': 2, 'test': 2}
    make_shapes_world(tmp_path / 'a', 'mini', seed=5, counts=counts)
    make_shapes_world(tmp_path / 'b', 'mini', seed=5, counts=counts, workers=2)
    names = files_of(tmp_path / 'a')
    assert names == files_of(tmp_path / 'b')
    same, different, errors = filecmp.cmpfiles(tmp_path / 'a', tmp_path / 'b', names, shallow=False)
    assert (different, errors) == ([], []) and len(same) > 44


def test_another_seed_gives_other_images_and_the_same_tokenizer(mini_world, tmp_path):
    make_shapes_world(tmp_path / 'other', 'mini', seed=4, counts={'train': 2, 'val': 1, 'test': 1})
    first = (tmp_path / 'other/images/train/000000.png').read_bytes()
    assert first != (mini_world / 'images/train/000000.png').read_bytes()
    for name in files_of(mini_world / 'tokenizer'):
        assert (tmp_path / 'other/tokenizer' / name).read_bytes() == (
            mini_world / 'tokenizer' / name
        ).read_bytes()


def test_info_counts_what_is_there(world):
    info = read_json(world / 'info.json')
    assert (info['generator'], info['seed']) == ('shapes_world', 3)
    refs = load_plain_pickle(world / 'refcoco/refs(unc).p')
    written = Counter(s['kind'] for r in refs if r['split'] == 'train' for s in r['sentences'])
    assert written == Counter(info['sentences']['train'])
    assert info['osprey']['osprey_test'] == len(read_json(world / 'osprey/osprey_test.json'))


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='not a ShapesWorld'):
            make_shapes_world(tmp_path, 'mini', overwrite=overwrite)
    assert files_of(tmp_path) == ['thesis.txt']


def test_an_existing_data_set_is_replaced_only_on_request(tmp_path):
    counts = {'train': 1, 'val': 1, 'test': 1}
    make_shapes_world(tmp_path / 'set', 'mini', seed=1, counts=counts)
    with pytest.raises(FileExistsError, match='--overwrite'):
        make_shapes_world(tmp_path / 'set', 'mini', seed=2, counts=counts)
    assert read_json(tmp_path / 'set/info.json')['seed'] == 1
    make_shapes_world(tmp_path / 'set', 'mini', seed=2, counts=counts, overwrite=True)
    assert read_json(tmp_path / 'set/info.json')['seed'] == 2
    assert os.listdir(tmp_path) == ['set']


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('pixelsail_mm.worlds.shapes_world.generate.train_tokenizer', interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_shapes_world(tmp_path / 'set', 'mini', counts={'train': 1, 'val': 1, 'test': 1})
    assert os.listdir(tmp_path) == []


def test_an_impossible_preset_is_explained(tmp_path):
    lonely = replace(
        PRESETS['mini'],
        num_objects=(1, 1),
        eval_cycle=('relation',),
        counts={'train': 0, 'val': 0, 'test': 1},
    )
    with pytest.raises(RuntimeError, match='eval_cycle'):
        make_shapes_world(tmp_path / 'set', lonely)
    with pytest.raises(KeyError, match='midi'):
        make_shapes_world(tmp_path / 'set', 'midi')


def test_command_line(repo_root, tmp_path, monkeypatch, capsys):
    script = str(repo_root / 'tools/dataset_converters/make_shapes_world.py')
    monkeypatch.setattr(
        sys,
        'argv',
        [
            script,
            '--out',
            str(tmp_path / 'set'),
            '--train',
            '2',
            '--val',
            '1',
            '--test',
            '1',
            '--size',
            '48',
        ],
    )
    runpy.run_path(script, run_name='__main__')
    assert json.loads(capsys.readouterr().out) == read_json(tmp_path / 'set/info.json')
    assert image_size(tmp_path / 'set') == 48
    with pytest.raises(SystemExit, match='error: .*--overwrite'):
        runpy.run_path(script, run_name='__main__')


@pytest.mark.integration
def test_help_needs_no_heavy_import(repo_root):
    script = 'tools/dataset_converters/make_shapes_world.py'
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', script, '--help'],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and '--preset' in done.stdout
    assert 'torch' not in done.stderr
