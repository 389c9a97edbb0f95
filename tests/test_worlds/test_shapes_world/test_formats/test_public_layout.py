"""ShapesWorld as the public data sets: every config of the manifest reads what was written."""

import shutil
from functools import partial

import numpy as np
import pytest

from pixelsail_mm.datasets.manifest.entries import dataset_cfg, evaluation_splits, load_manifest
from pixelsail_mm.registry import DATASETS
from pixelsail_mm.tokenization import SEG_TOKEN
from pixelsail_mm.worlds.shapes_world.formats.world import read_world

NAMES = list(load_manifest()['datasets'])
LOADING = [
    dict(type=name) for name in ('LoadImage', 'LoadMasks', 'LoadIgnoreMasks', 'LoadVisualPrompts')
]


def build(name, root, **options):
    return DATASETS.build(dataset_cfg(name, root=str(root), pipeline=LOADING, **options))


@pytest.mark.parametrize('name', [name for name in NAMES if not name.startswith('perbench')])
def test_training_configs_read_their_files(public_layout, name):
    dataset = build(name, public_layout[1])
    assert len(dataset) >= 14
    for index in range(8):
        sample = dataset[index]
        answers = ''.join(turn['gpt'] for turn in sample['conversation'])
        assert answers.count(SEG_TOKEN) == len(sample['gt_masks'])
        assert sample['img'] is None or sample['img'].shape == (80, 80, 3)
    reasons = set(dataset.skipped)
    assert not any('Error' in reason or 'missing' in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    'name, split', [(name, split) for name in NAMES for split in evaluation_splits(name)]
)
def test_evaluation_configs_read_their_files(public_layout, name, split):
    dataset = build(name, public_layout[1], evaluation=split)
    assert len(dataset) >= 2
    samples = [dataset[i] for i in range(len(dataset))]
    assert len({sample['meta']['sample_id'] for sample in samples}) == len(samples)
    known = {f'{image.image_id:012d}': image.split for image in read_world(public_layout[0])}
    splits = {known[sample['img_path'].split('/')[-1][:12]] for sample in samples}
    assert splits == {split.rstrip('AB')}


def test_masks_are_those_of_the_world(public_layout):
    """RefCOCO keeps every mask; all sentences of a mask's reference point at it."""
    world, data = public_layout
    ours, theirs = (
        DATASETS.build(
            dict(
                type='RefCOCODataset',
                ann_file=f'{folder}/instances.json',
                split_file=f'{folder}/refs(unc).p',
                data_root=str(root),
                data_prefix=dict(img_path=images),
                split='val',
                test_mode=True,
                pipeline=LOADING,
            )
        )
        for root, folder, images in (
            (data, 'ref_seg/refcoco', 'images'),
            (world, 'refcoco', 'images'),
        )
    )
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one['meta']['expression'] == other['meta']['expression']
        assert np.array_equal(one['gt_masks'], other['gt_masks'])
        assert np.array_equal(one['img'], other['img'])


def test_words_of_place_are_not_in_refcoco_plus(public_layout):
    texts = {
        sample['meta']['expression']
        for split in evaluation_splits('refcoco_plus')
        for sample in build('refcoco_plus', public_layout[1], evaluation=split)
    }
    everything = {
        sample['meta']['expression']
        for split in evaluation_splits('refcoco')
        for sample in build('refcoco', public_layout[1], evaluation=split)
    }
    place = {text for text in everything if {'left', 'right', 'above', 'below'} & set(text.split())}
    assert place and texts and texts <= everything - place


def test_expert_maps_and_tokenizer_come_along(public_layout):
    world, data = public_layout
    images = [image for image in read_world(world) if image.split == 'train']
    for image in images:
        old = (world / 'expert' / image.file_name).with_suffix('.npz')
        assert (data / f'expert/{image.image_id:012d}.npz').read_bytes() == old.read_bytes()
    assert (data / 'tokenizer/tokenizer.json').is_file()


@pytest.mark.integration
def test_the_command_refuses_what_it_cannot_do(
    public_layout, mini_world, tmp_path, run_command, warm_python
):
    tool = 'tools/dataset_converters/shapes_world_to_public.py'
    run = partial(run_command, warm_python, tool)
    for args, message in (
        ((public_layout[0], public_layout[1]), 'is not empty'),
        ((mini_world, tmp_path / 'a'), 'the images must be .jpg files'),
        ((tmp_path / 'nothing', tmp_path / 'b'), 'instances.json'),
    ):
        done = run(*args)
        assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr
    shutil.copytree(public_layout[0], tmp_path / 'world')
    done = run(tmp_path / 'world', tmp_path / 'data')
    assert done.returncode == 0 and 'files and links' in done.stdout
    first = (public_layout[1] / 'muse/MUSE_train.json').read_bytes()
    assert (tmp_path / 'data/muse/MUSE_train.json').read_bytes() == first
