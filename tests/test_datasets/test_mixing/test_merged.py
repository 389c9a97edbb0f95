"""Merging: turns of several readers about one image in one sample."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from pixelsail_mm.datasets import AnnotationError, PixelDataset
from pixelsail_mm.datasets.files.masks import decode_mask
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.errors import MissingFilesError
from pixelsail_mm.registry import DATASETS


class Scripted(PixelDataset):
    """Reader of ready records: image number, turns, masks, prompt ids."""

    def __init__(self, images, turns, masks=(), ids=(), **kwargs):
        self.images, self.turns, self.masks, self.ids = images, turns, list(masks), ids
        super().__init__(ann_file='', **kwargs)

    def required_paths(self):
        return {}

    def load_data_list(self):
        return [dict(img_path=f'{i}.png' if i is not None else None) for i in self.images]

    def record(self, index, rng, num_turns=None):
        return dict(
            img_path=self.get_data_info(index)['img_path'],
            conversation=[dict(human=h, gpt=g) for h, g in self.turns][:num_turns],
            masks=list(self.masks),
            meta={},
            height=4,
            width=4,
            prompts=[dict(id=k, mask=f'mask {k}') for k in self.ids],
        )


def merge(*datasets, **options):
    return DATASETS.build(dict(type='MergedDataset', datasets=list(datasets), **options))


SEG = Scripted([1, 2], [('a', '[SEG].'), ('b', '[SEG] and [SEG].')], ['A', 'B1', 'B2'])
TEXT = Scripted([2, 1, None], [('c', 'x'), ('d', 'y')])


def test_masks_follow_their_turns_and_readers_keep_their_order():
    dataset = merge(SEG, TEXT)
    orders = set()
    for i in range(40):
        sample = dataset[i]
        order = ''.join(turn['human'] for turn in sample['conversation'])
        assert sorted(order) == list('abcd')
        assert order.index('a') < order.index('b') and order.index('c') < order.index('d')
        assert sample['masks'] == ['A', 'B1', 'B2']
        orders.add(order)
    assert len(orders) == 6, 'every interleaving occurs'


class Boxed(Scripted):
    """The same with a box for each mask."""

    def record(self, index, rng, num_turns=None):
        record = super().record(index, rng, num_turns)
        return dict(record, boxes=[f'box {mask}' for mask in record['masks']])


def test_boxes_follow_their_masks_or_are_left_out_and_counted():
    boxed = Boxed([1], [('e', '[SEG].')], ['E'])
    first = Boxed([1], [('a', '[SEG].'), ('b', '[SEG] and [SEG].')], ['A', 'B1', 'B2'])
    dataset = merge(first, boxed, TEXT)
    for i in range(9):
        sample = dataset[i]
        assert len(sample['masks']) == 4
        assert sample['boxes'] == [f'box {mask}' for mask in sample['masks']]
    mixed = merge(boxed, SEG)
    assert 'boxes' not in mixed[0]
    assert sum(mixed.noted.values()) == 1 and 'boxes left out' in next(iter(mixed.noted))


def test_samples_are_functions_of_seed_and_index():
    first, second = merge(SEG, TEXT, seed=3), merge(SEG, TEXT, seed=3)
    pick = [
        [t['human'] for t in dataset[i]['conversation']]
        for i in range(30)
        for dataset in (first, second)
    ]
    assert pick[::2] == pick[1::2]


def test_images_come_from_the_first_reader():
    few = Scripted([2], [('e', 'z')])
    assert len(merge(SEG, few)) == 2
    assert [len(sample['conversation']) for sample in merge(SEG, few)] == [2, 3]
    assert [s['img_path'] for s in merge(SEG, few, require_all=True)] == ['2.png']
    with pytest.raises(AnnotationError, match='no image that its readers share'):
        merge(SEG, Scripted([9], [('e', 'z')]), require_all=True)


def test_number_of_turns_per_reader():
    one = Scripted([1, 2], [('a', '[SEG].')], ['A'])
    sample = merge(one, TEXT, turns=[None, 1])[0]
    assert sorted(turn['human'] for turn in sample['conversation']) == ['a', 'c']
    for turns in ([1], [1, 0], [1, 1, 1]):
        with pytest.raises(ValueError, match='turns'):
            merge(SEG, TEXT, turns=turns)


def test_prompt_ids_are_made_unique_together_with_their_text():
    first = Scripted([1], [('is <Prompt0> left of <Prompt1>?', 'yes')], ids=[0, 1])
    second = Scripted([1], [('and <Prompt1>, <Prompt0>?', '<Prompt0>: no')], ids=[1, 0])
    dataset = merge(first, second)
    for i in range(10):
        sample = dataset[i]
        ids = [prompt['id'] for prompt in sample['prompts']]
        assert ids[:2] == [0, 1] and len(set(ids)) == 4
        assert [p['mask'] for p in sample['prompts']] == ['mask 0', 'mask 1', 'mask 1', 'mask 0']
        texts = {turn['human']: turn['gpt'] for turn in sample['conversation']}
        assert texts == {
            'is <Prompt0> left of <Prompt1>?': 'yes',
            f'and <Prompt{ids[2]}>, <Prompt{ids[3]}>?': f'<Prompt{ids[3]}>: no',
        }


def test_disjoint_prompt_ids_stay():
    first, second = (Scripted([1], [(f'<Prompt{k}>?', 'ok')], ids=[k]) for k in (3, 8))
    assert [p['id'] for p in merge(first, second)[0]['prompts']] == [3, 8]


def test_absent_prompts_do_not_name_those_of_another_reader():
    first = Scripted([1], [('<Prompt3>?', '<Prompt3> is not in the image.')], ids=[0])
    second = Scripted(
        [1], [('<Prompt3>?', 'a dog'), ('<Prompt7>?', '<Prompt7> is not here.')], ids=[3]
    )
    dataset = merge(first, second)
    for i in range(20):
        sample = dataset[i]
        marked = [prompt['id'] for prompt in sample['prompts']]
        texts = {turn['gpt']: turn['human'] for turn in sample['conversation']}
        assert texts.pop('<Prompt3> is not in the image.') == '<Prompt3>?'
        assert marked[0] == 0 and texts.pop('a dog') == f'<Prompt{marked[1]}>?'
        ((answer, question),) = texts.items()
        assert int(re.findall(r'\d+', question)[0]) not in [3, *marked]
        assert answer == question[:-1] + ' is not here.'


def test_prompts_that_find_no_room_take_their_turns_with_them():
    many = Scripted([1], [('<Prompt0>?', 'ok')], ids=range(10))
    dataset = merge(many, many, TEXT)
    sample = dataset[0]
    assert sorted(t['human'] for t in sample['conversation']) == ['<Prompt0>?', 'c', 'd']
    assert len(sample['prompts']) == 10
    assert dataset.skipped == {'turns dropped: more than # visual prompts in one merged sample': 1}


def test_a_reader_with_unmatched_masks_is_skipped_and_counted():
    wrong = Scripted([1, 2], [('a', '[SEG].')], ['A', 'B'])
    with pytest.raises(RuntimeError, match='2 masks for 1'):
        merge(wrong, max_refetch=3)[0]


def test_readers_in_test_mode_are_refused():
    with pytest.raises(ValueError, match=r'datasets\[1\] is in test mode'):
        merge(SEG, Scripted([1], [('a', 'b')], test_mode=True))


@pytest.fixture
def shapes(mini_world, refcoco_cfg):
    """Configs of three readers over the same images."""
    group = dict(
        refcoco_cfg, ann_file='refcoco_group/instances.json', split_file='refcoco_group/refs(unc).p'
    )
    osprey = dict(
        type='OspreyDataset',
        data_root=str(mini_world),
        shuffle_turns=True,
        ann_file='osprey/osprey_train.json',
        data_prefix=dict(img_path='images'),
    )
    return [dict(refcoco_cfg, replacement=False), dict(group, replacement=False), osprey]


def truth(world):
    """(image, sentence) -> mask, from the files alone."""
    masks = {}
    for folder in ('refcoco', 'refcoco_group'):
        instances = json.loads((world / folder / 'instances.json').read_text())
        annotations = {ann['id']: ann['segmentation'] for ann in instances['annotations']}
        for ref in load_plain_pickle(world / folder / 'refs(unc).p'):
            for sentence in ref['sentences']:
                masks[ref['file_name'], sentence['raw']] = annotations[ref['ann_id']]
    return masks


def test_real_readers_keep_text_masks_and_prompts_together(shapes, mini_world, world_counts):
    for cfg in shapes[:2]:
        cfg['questions'] = ['Segment {x}.']
    dataset = merge(*shapes, turns=[3, 3, 2])
    masks = truth(mini_world)
    assert len(dataset) == world_counts['train']
    for sample in dataset:
        name = sample['img_path'].split('images/')[1]
        asked = [
            re.fullmatch(r'Segment (.+)\.', turn['human'])
            for turn in sample['conversation']
            if '[SEG]' in turn['gpt']
        ]
        assert sample['masks'] == [masks[name, match.group(1)] for match in asked]
        assert len(sample['conversation']) == len(asked) + 2 and len(asked) >= 4
        text = json.dumps(sample['conversation'])
        ids = {prompt['id'] for prompt in sample['prompts']}
        assert {int(k) for k in re.findall(r'<Prompt(\d+)>', text)} <= ids
        assert sample['meta']['task'] == 'merged'


def test_described_regions_carry_their_prompt_id(shapes, mini_world):
    """The colour that an answer names is the one under the prompt of the question."""
    from pixelsail_mm.worlds.shapes_world.presets import COLOURS

    dataset = merge(*shapes)
    checked = 0
    for sample in dataset:
        pixels = np.asarray(Image.open(sample['img_path'])).astype(float)
        prompts = {prompt['id']: prompt['mask'] for prompt in sample['prompts']}
        for turn in sample['conversation']:
            match = re.search(r'<Prompt(\d+)>', turn['human'])
            words = turn['gpt'].split()
            if match and len(words) == 4 and words[1] == 'plain':
                mask = decode_mask(prompts[int(match.group(1))], 64, 64, None, 'mask')
                seen = np.median(pixels[mask], axis=0)
                distances = {c: np.abs(seen - v).sum() for c, v in COLOURS.items()}
                assert min(distances, key=distances.get) == words[2]
                checked += 1
    assert checked > 10


def test_missing_files_of_all_readers_are_named(shapes):
    broken = [dict(cfg, ann_file=f'gone{i}.json') for i, cfg in enumerate(shapes)]
    with pytest.raises(MissingFilesError) as caught:
        merge(*broken)
    assert [key for key, _ in caught.value.missing] == [f'datasets[{i}].ann_file' for i in range(3)]
