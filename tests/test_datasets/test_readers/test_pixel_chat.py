"""The reader of our own format."""

import json
import re

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from pixelsail_mm.datasets import AnnotationError, BadSampleError
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.readers.pixel_chat import validate_pixel_chat
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.worlds.shapes_world.formats.pixel_chat import write as write_world
from pixelsail_mm.worlds.shapes_world.formats.world import read_world
from tests.test_datasets.test_readers.loading import load
from tests.test_datasets.test_readers.pixel_chat_entries import (
    FULL,
    POLYGON,
    RLE,
    H,
    W,
    asked,
    entry,
    masked,
    prompted,
    turn,
)

TEXT = dict(turns=[turn()])


@pytest.fixture
def write(tmp_path):
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(tmp_path / 'a.png')

    def writer(entries, file='data.json', **options):
        text = (
            ''.join(json.dumps(e) + '\n\n' for e in entries)
            if file.endswith('l')
            else json.dumps(entries)
        )
        (tmp_path / file).write_text(text)
        return dict(type='PixelChatDataset', ann_file=file, data_root=str(tmp_path), **options)

    return writer


def build(cfg):
    return DATASETS.build(cfg)


@pytest.mark.parametrize('file', ['data.json', 'data.jsonl'])
def test_record(write, tmp_path, file):
    dataset = build(
        write(
            [FULL, TEXT],
            file,
            random_prompt_ids=False,
            data_prefix=dict(img_path='images', mask_path='masks'),
            name='mine',
            lazy_init=True,
        )
    )
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    sample, text = dataset
    masks = str(tmp_path / 'masks')
    assert sample['img_path'] == str(tmp_path / 'images/a.png') == dataset.image_path(0)
    assert sample['conversation'] == [
        dict(human='Where is <Prompt3>?', gpt='<p> This </p> [SEG] and [SEG].'),
        dict(human='Which? A. a B. b', gpt='B'),
        dict(human='<Prompt0>, <Prompt14>, <Prompt1>?', gpt='[SEG], <Prompt2>.'),
    ]
    assert sample['masks'] == [
        dict(union=[POLYGON, RLE, dict(png=f'{masks}/m.png')]),
        dict(png=f'{masks}/s.png', ids=[3, 65536]),
        RLE,
    ]
    assert sample['prompts'] == FULL['prompts'][:4]
    assert sample['meta'] == dict(sample_id='mine/first', dataset='mine', task='refseg', kind=3)
    assert (sample['height'], sample['width']) == (H, W)
    assert text['img_path'] is None and text['masks'] == text['prompts'] == []
    assert text['meta'] == dict(sample_id='mine/1', dataset='mine', task='vqa')
    assert 'height' not in text


def test_folders_default_to_the_root(write, tmp_path):
    (sample,) = build(write([masked(dict(png='m.png'))]))
    assert sample['img_path'] == str(tmp_path / 'a.png')
    assert sample['masks'] == [dict(png=str(tmp_path / 'm.png'))]


def test_masks_stay_with_their_turns(write):
    """Turn i has i masks, of which each begins with 10 i."""
    turns = [turn(f'q{i}', f'a{i}' + ' [SEG]' * i) for i in range(4)]
    masks = [[[10 * i + j, 1, 5, 1, 5, 5]] for i in range(4) for j in range(i)]
    cfg = write([entry(*turns, masks=masks)])
    drawn = build(dict(cfg, max_turns=2, shuffle_turns=True))
    orders = set()
    for k in range(150):
        sample = drawn[k]
        order = [int(t['human'][1]) for t in sample['conversation']]
        assert [int(t['gpt'][1]) for t in sample['conversation']] == order
        assert [mask[0][0] for mask in sample['masks']] == [
            10 * i + j for i in order for j in range(i)
        ]
        orders.add(tuple(order))
    assert len(orders) == 12
    first = build(dict(cfg, max_turns=3))[0]
    assert [t['human'] for t in first['conversation']] == ['q0', 'q1', 'q2']
    assert len(first['masks']) == 3
    one = build(cfg).record(0, np.random.default_rng(0), num_turns=2)
    assert [t['human'] for t in one['conversation']] == ['q0', 'q1'] and len(one['masks']) == 1


def test_prompt_ids_are_random_in_training_and_renamed_everywhere(write):
    candidate = entry(
        turn('<Prompt1> or <Prompt12>?', '<Prompt12>: no'),
        turn('<Prompt2>?', '<Prompt2> is not in the image.'),
        prompts=[dict(id=2, absent=True), dict(id=12, point=[1, 1]), dict(id=1, box=[1, 1, 2, 2])],
    )
    dataset = build(write([candidate]))
    seen = set()
    for i in range(60):
        sample = dataset[i]
        ids = [prompt['id'] for prompt in sample['prompts']]
        absent = int(re.match(r'<Prompt(\d+)> is', sample['conversation'][1]['gpt']).group(1))
        assert ['point' in prompt for prompt in sample['prompts']] == [True, False]
        assert sample['conversation'] == [
            dict(human=f'<Prompt{ids[1]}> or <Prompt{ids[0]}>?', gpt=f'<Prompt{ids[0]}>: no'),
            dict(human=f'<Prompt{absent}>?', gpt=f'<Prompt{absent}> is not in the image.'),
        ]
        assert len({*ids, absent}) == 3
        seen |= {*ids, absent}
    assert seen == set(range(15))
    for fixed in (dict(random_prompt_ids=False), dict(test_mode=True)):
        sample = build(write([candidate], **fixed))[0]
        assert [prompt['id'] for prompt in sample['prompts']] == [12, 1]
        assert sample['conversation'][0]['human'] == '<Prompt1> or <Prompt12>?'


def test_test_mode_asks_every_turn_after_those_before_it(write):
    sample = build(write([FULL, entry()], test_mode=True))
    assert [len(s['conversation']) for s in sample] == [1, 2, 3, 1]
    assert [s['meta']['sample_id'] for s in sample] == [
        f'PixelChatDataset/{name}' for name in ('first/0', 'first/1', 'first/2', '1/0')
    ]
    assert [len(s['masks']) for s in sample] == [2, 0, 1, 0] and sample[2]['masks'] == [RLE]
    assert [len(s['prompts']) for s in sample] == [4, 4, 4, 0]
    own = {k: v for k, v in sample[1]['meta'].items() if k not in ('sample_id', 'dataset')}
    assert own == dict(task='refseg', kind=3, choices=['a', 'b'], answer='B', references=['b', 'B'])
    assert sample[0]['meta']['expression'] == '<Prompt3>' and 'expression' not in sample[2]['meta']
    assert sample[0]['meta']['no_target'] is False
    assert build(write([FULL]))[0]['meta'].keys() == {'task', 'kind', 'sample_id', 'dataset'}


def test_independent_turns_are_asked_alone(write):
    cfg = write(
        [entry(turn('a', '[SEG]'), turn('b', '[SEG]'), masks=[POLYGON, []])],
        test_mode=True,
        shuffle_turns=True,
        max_turns=1,
    )
    samples = list(build(cfg))
    assert [[t['human'] for t in s['conversation']] for s in samples] == [['a'], ['b']]
    assert [s['masks'] for s in samples] == [[POLYGON], [[]]]


def test_kind_of_task(write):
    entries = [
        asked(choices=['a', 'b'], correct='A'),
        masked(POLYGON),
        prompted(point=[1, 1]),
        entry(),
        entry(meta=dict(task='gcg')),
    ]
    tasks = ['mcq', 'refseg', 'region', 'vqa', 'gcg']
    for mode in (True, False):
        assert [s['meta']['task'] for s in build(write(entries, test_mode=mode))] == tasks


def test_faulty_entries_are_counted_in_training_and_fatal_in_tests(write, caplog):
    faulty = entry(turn(answer='[SEG] and [SEG].'), masks=[POLYGON])
    dataset = build(write([entry(), faulty, {}]))
    assert len(dataset) == 1 and sum(dataset.skipped.values()) == 2
    assert any(r'[#].masks: # masks for # [SEG]' in reason for reason in dataset.skipped)
    with pytest.raises(BadSampleError, match=r'data.json: \[1\].masks: 1 masks for 2'):
        build(write([entry(), faulty], test_mode=True))


def test_ids_are_distinct_where_results_are_told_apart_by_them(write, tmp_path):
    entries = [entry(id='x'), entry(id=1), entry(id='x'), entry(id='1')]
    assert len(build(write(entries))) == 4
    with pytest.raises(BadSampleError, match=r"\[2\].id: id 'x' is that of \[0\] as well"):
        build(write(entries, test_mode=True))
    assert len(validate_pixel_chat(tmp_path / 'data.json')) == 2


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('f.json', '[{"turns": [}]', r'f.json: \[0\]: not valid JSON'),
        ('f.json', '{"turns": []}', 'must hold a JSON list'),
        ('f.json', '', 'must hold a JSON list'),
        ('f.jsonl', '{"turns": []}\n{"turns"', 'line 2: not valid JSON'),
    ],
)
def test_damaged_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=message):
        build(dict(type='PixelChatDataset', ann_file=name, data_root=str(tmp_path)))
    assert re.search(message, validate_pixel_chat(tmp_path / name)[-1])


@pytest.mark.parametrize('name, text', [('f.json', '[]'), ('f.jsonl', '\n')])
def test_empty_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match='has no item'):
        build(dict(type='PixelChatDataset', ann_file=name, data_root=str(tmp_path)))
    assert validate_pixel_chat(tmp_path / name) == [f'{tmp_path / name}: holds no entry']


def test_validation_with_images(write, tmp_path):
    write(
        [
            entry(height=H, width=W),
            entry(height=W, width=H),
            masked(dict(png='none.png')),
            entry() | dict(image='b.png'),
            entry(
                prompts=[
                    dict(id=4, absent=True),
                    dict(id=0, point=[1, 1]),
                    dict(id=2, scribble=[[99, 99]]),
                ]
            ),
        ]
    )
    assert validate_pixel_chat(tmp_path / 'data.json') == []
    problems = validate_pixel_chat(tmp_path / 'data.json', tmp_path, tmp_path / 'masks')
    for problem, start in zip(
        problems,
        [
            r'[1].height, width: the annotation states 8x6',
            r'[2].masks[0]: no such mask file',
            r'[3].img_path: no such image',
            r'[4].prompts[2].scribble: scribble',
        ],
        strict=True,
    ):
        assert problem.startswith(f'{tmp_path}/data.json: {start}'), problem


def test_samples_are_functions_of_seed_and_index(write):
    turns = [turn(f'q{i} <Prompt0>') for i in range(5)]
    cfg = write([entry(*turns, prompts=[dict(id=0, point=[1, 1])])], shuffle_turns=True)
    first, again = build(cfg), build(cfg)
    samples = [first[i]['conversation'] for i in range(10)]
    assert samples == [again[i]['conversation'] for i in range(10)]
    assert len({str(sample) for sample in samples}) == 10


def test_reads_shapes_world(world, tmp_path, world_counts):
    """Expressions, descriptions and options name what lies under the masks and prompts."""
    images = read_world(world)
    write_world(images, world, tmp_path, np.random.default_rng(0))
    by_name = {image.file_name: image for image in images}
    cfg = dict(
        type='PixelChatDataset',
        data_root=str(tmp_path),
        shuffle_turns=True,
        data_prefix=dict(img_path=str(world / 'images'), mask_path='masks'),
    )
    kinds, told = set(), 0
    for split, mode in (('train', False), ('test', True)):
        dataset = build(dict(cfg, ann_file=f'pixel_chat_{split}.json', test_mode=mode))
        assert len(dataset) > world_counts[split]
        for sample in map(load, dataset):
            if sample['img'] is None:
                continue
            image = by_name[sample['img_path'].split('images/')[1]]
            objects = [
                decode_mask(o.segmentation, image.height, image.width, None, 'm')
                for o in image.objects
            ]
            sentences = {text: (i,) for i, o in enumerate(image.objects) for text in o.sentences}
            sentences |= {group.sentence: group.members for group in image.groups}
            # A box may hold more of another object than of its own.
            under = {
                k: int(np.argmax([(true & marked).sum() for true in objects]))
                for k, marked, kind in zip(
                    *(sample[f'prompt_{name}'] for name in ('ids', 'masks', 'kinds'))
                )
                if kind != 'box'
            }
            kinds |= set(sample['prompt_kinds'])
            asked = sample['conversation'][-1:] if mode else sample['conversation']
            masks = iter(sample['gt_masks'])
            for human, gpt in ((t['human'], t['gpt']) for t in asked):
                found = re.fullmatch(r'Please segment (.+)\.', human)
                if found and gpt.startswith('No target'):
                    assert not next(masks).any()
                elif found:
                    parts = [next(masks) for _ in range(gpt.count('[SEG]'))]
                    true = [objects[i] for i in sentences[found.group(1)]]
                    assert len(parts) in (1, len(true))
                    assert (np.any(parts, 0) == np.any(true, 0)).all()
                    told += 1
                named = re.fullmatch(r'<Prompt(\d+)>: an? (.+)', gpt)
                if named and int(named.group(1)) in under:
                    assert image.objects[under[int(named.group(1))]].description == named.group(2)
                    told += 1
            assert next(masks, None) is None
            if sample['meta'].get('choices'):
                right = sample['meta']['choices']['ABCD'.index(sample['meta']['answer'])]
                k = int(re.search(r'<Prompt(\d+)>', asked[0]['human']).group(1))
                assert k not in under or right in image.objects[under[k]].attributes.values()
    assert kinds == {'mask', 'box', 'point', 'scribble'} and told > 100


def test_config_of_the_documentation_builds(repo_root, parity_dir, tmp_path):
    text = (repo_root / 'docs/custom_data.md').read_text(encoding='utf-8')
    code = re.search(r'```python\n(_base_.*?)```', text, re.DOTALL).group(1)
    (tmp_path / 'my_data.py').write_text(
        code.replace("'./_base_/", f"'{repo_root}/configs/_base_/").replace(
            "'data/mine'", f"'{tmp_path}'"
        )
    )
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(tmp_path / 'images/a.png')
    for name in ('train.json', 'val.json'):
        (tmp_path / name).write_text(json.dumps([masked(POLYGON), TEXT]))
    cfg = Config.fromfile(tmp_path / 'my_data.py')
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader[0], 2)):
        for stage in loader.dataset.pipeline:
            if stage.type == 'BuildConversation':
                stage.tokenizer = str(parity_dir / 'tokenizer')
        samples = list(DATASETS.build(loader.dataset))
        assert len(samples) == count
        assert samples[0]['data_samples'].gt_masks.shape == (1, H, W)
