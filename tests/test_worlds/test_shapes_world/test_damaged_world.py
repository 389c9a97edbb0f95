"""A data set on disk in which everything that can be wrong is wrong somewhere."""

import json
import pickle
import shutil

import pytest
from PIL import Image

from pixelsail_mm.datasets import BadSampleError
from pixelsail_mm.registry import DATASETS

STAGES = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=8, max_size=1024),
]


@pytest.fixture
def damaged(mini_world, tmp_path):
    """Config of a reader of a copy in which training images 0 to 4 are damaged."""
    root = tmp_path / 'world'
    shutil.copytree(mini_world, root)
    images = sorted((root / 'images/train').glob('*.png'))
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[: len(whole) // 2])
    images[1].write_text('not an image')
    images[2].unlink()
    Image.new('RGB', (1, 1)).save(images[3])
    Image.new('RGB', (2, 10_000)).save(images[4])
    refs = pickle.loads(  # noqa: S301 - written by the fixture itself
        (root / 'refcoco/refs(unc).p').read_bytes()
    )
    sentences = [ref['sentences'] for ref in refs if ref['split'] == 'train']
    sentences[-1][0].update(sent=' ', raw=' ')
    (root / 'refcoco/refs(unc).p').write_bytes(pickle.dumps(refs))
    pipeline = [
        *STAGES,
        dict(type='BuildConversation', tokenizer=str(root / 'tokenizer')),
        dict(type='PackPixelInputs'),
    ]
    return dict(
        type='RefCOCODataset',
        data_root=str(root),
        ann_file='refcoco/instances.json',
        split_file='refcoco/refs(unc).p',
        data_prefix=dict(img_path='images'),
        split='train',
        pipeline=pipeline,
    )


def test_training_skips_and_counts_what_is_damaged(damaged):
    dataset = DATASETS.build(damaged)
    samples = list(dataset)
    assert len(samples) == len(dataset) == 24
    shapes = {tuple(sample['inputs']['image'].shape) for sample in samples}
    assert shapes == {(3, 64, 64)}
    reasons = ' | '.join(dataset.skipped)
    for part in ('truncated', 'cannot identify', 'no such image', 'empty expression'):
        assert part in reasons, (part, reasons)
    # The images of 1x1 and 10,000x2 pixels are not those that the annotations were made for.
    assert max(n for reason, n in dataset.skipped.items() if 'annotation states' in reason) >= 2


def test_testing_stops_at_what_is_damaged(damaged):
    dataset = DATASETS.build(dict(damaged, test_mode=True, split='test'))
    broken = json.loads(open(f'{damaged["data_root"]}/refcoco/instances.json').read())['images']
    path = next(image['file_name'] for image in broken if image['file_name'].startswith('test'))
    with open(f'{damaged["data_root"]}/images/{path}', 'wb') as file:
        file.write(b'')
    with pytest.raises(BadSampleError, match=path):
        list(dataset)
