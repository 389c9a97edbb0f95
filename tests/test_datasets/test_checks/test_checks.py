"""The checker finds every planted fault, names it, and finds nothing in sound data."""

import json
import pickle
import shutil

import pytest
from PIL import Image

from pixelsail_mm.datasets.checks import check_config
from pixelsail_mm.datasets.files.pictures import ROTATION_IGNORED


@pytest.fixture
def root(mini_world, tmp_path):
    """A copy of a drawn world that a test may damage."""
    shutil.copytree(mini_world, tmp_path / 'world')
    return tmp_path / 'world'


@pytest.fixture
def config(root):
    """Training on sentences and regions, evaluation on sentences and choices."""
    common = dict(data_root=str(root), data_prefix=dict(img_path='images'))
    refs = dict(
        common,
        type='RefCOCODataset',
        ann_file='refcoco/instances.json',
        split_file='refcoco/refs(unc).p',
    )
    regions = dict(common, type='OspreyDataset', ann_file='osprey/osprey_train.json')
    tokens = [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='ResizeToGrid', patch_size=8),
        dict(type='BuildConversation', tokenizer=str(root / 'tokenizer')),
        dict(type='PackPixelInputs'),
    ]
    return dict(
        train_dataloader=dict(
            dataset=dict(type='MixtureDataset', datasets=[refs, regions], pipeline=tokens)
        ),
        val_dataloader=[dict(dataset=dict(refs, split='val', test_mode=True))],
        test_dataloader=[
            dict(dataset=dict(refs, split='test', test_mode=True)),
            dict(dataset=dict(regions, ann_file='osprey/osprey_test.json', test_mode=True)),
        ],
    )


REFS = 'train_dataloader.dataset.datasets[0]'
REGIONS = 'train_dataloader.dataset.datasets[1]'


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def faults(config, **options):
    return {(f.dataset, f.kind): f for f in reversed(check_config(config, **options).faults)}


def test_sound_data_has_no_fault(config, root):
    report = check_config(config)
    assert report.faults == [] and report.overlap == set()
    assert len(report.items) == 5 and report.sampled == {
        key: min(200, items) for key, items in report.items.items()
    }
    text = report.text()
    assert text.endswith('0 errors, 0 warnings') and 'not checked' not in text
    assert f'{REFS} (RefCOCODataset, refcoco/instances.json): 24 items of 24 images' in text
    assert f'  reads {root}/osprey/osprey_train.json, {root}/images' in text


def test_only_the_data_loaders_that_are_asked_for(config, root):
    (root / 'osprey' / 'osprey_train.json').unlink()
    report = check_config(config, loaders=('test_dataloader',))
    assert report.faults == [] and list(report.items) == [
        'test_dataloader[0].dataset',
        'test_dataloader[1].dataset',
    ]


def test_without_the_tokenizer_all_else_is_checked(config, root):
    shutil.rmtree(root / 'tokenizer')
    (root / 'images' / 'train' / '000003.png').unlink()
    report = check_config(config)
    assert {fault.kind for fault in report.faults} == {'unusable sample'}
    (what,) = report.unchecked
    assert what.startswith('lengths in tokens') and f'{root}/tokenizer' in what
    assert f'not checked: {what}' in report.text()


def test_of_a_folder_of_annotations_the_folder_is_named(root):
    folder = root / 'reason'
    shutil.copytree(root / 'images' / 'val', folder)
    for image in sorted(folder.iterdir()):
        image.rename(image.with_suffix('.jpg')).with_suffix('.json').write_text(
            json.dumps(
                dict(
                    text=['the cat'],
                    is_sentence=False,
                    shapes=[dict(label='target', points=[[1, 1], [9, 1], [9, 9]])],
                )
            )
        )
    report = check_config(
        dict(
            test_dataloader=dict(
                dataset=dict(
                    type='ReasonSegDataset',
                    data_root=str(root),
                    data_prefix=dict(img_path='reason'),
                    test_mode=True,
                    pipeline=[],
                )
            )
        )
    )
    assert report.faults == [] and report.paths == {'test_dataloader.dataset': [str(folder)]}


def test_what_to_do_is_said_once(config, root):
    shutil.rmtree(root / 'images')
    text = check_config(config).text()
    assert text.count('data_prefix.img_path') == 5
    assert text.count(f'    {root} has nothing of a similar name') == 1


def test_a_missing_folder(config, root):
    shutil.rmtree(root / 'images')
    fault = faults(config)[REFS, 'missing']
    assert str(root / 'images') in fault.message and 'data_prefix.img_path' in fault.message


def test_a_misnamed_file_comes_with_what_it_may_be(config, root):
    (root / 'refcoco' / 'refs(unc).p').rename(root / 'refcoco' / 'refs(umd).p')
    fault = faults(config)[REFS, 'missing']
    assert 'split_file' in fault.message
    assert f'did you mean {root}/refcoco/refs(umd).p?' in fault.hints


def test_a_damaged_annotation_file(config, root):
    path = root / 'osprey' / 'osprey_train.json'
    path.write_bytes(path.read_bytes()[:-40])
    fault = faults(config)[REGIONS, 'annotations']
    assert 'osprey_train.json' in fault.message and 'not valid JSON' in fault.message


def test_a_split_that_does_not_exist(config):
    config['test_dataloader'][0]['dataset']['split'] = 'testA'
    fault = faults(config)['test_dataloader[0].dataset', 'annotations']
    assert "'testA'" in fault.message and "'test'" in fault.message


def test_a_missing_image(config, root):
    (root / 'images' / 'train' / '000003.png').unlink()
    fault = faults(config)[REFS, 'unusable sample']
    assert '000003.png' in fault.message and 'no such image' in fault.message


def test_a_truncated_image(config, root):
    path = root / 'images' / 'test' / '000001.png'
    path.write_bytes(path.read_bytes()[:200])
    fault = faults(config)['test_dataloader[0].dataset', 'unusable sample']
    assert '000001.png' in fault.message and 'cannot be decoded' in fault.message


def test_an_image_of_another_size_than_annotated(config, root):
    edit(root / 'refcoco' / 'instances.json', lambda c: c['images'][2].update(width=65))
    assert 'height, width' in faults(config)[REFS, 'unusable sample'].message


def test_a_broken_mask(config, root):
    edit(
        root / 'osprey' / 'osprey_train.json',
        lambda c: c[0]['annotation'][0]['segmentation'].update(size=[1, 1]),
    )
    assert 'RLE needs counts and size' in faults(config)[REGIONS, 'unusable sample'].message


def test_a_list_of_run_lengths_is_sound(config, root):
    def wrap(content):
        for entry in content:
            for item in entry['annotation']:
                item['segmentation'] = [item['segmentation']]

    for split in ('train', 'test'):
        edit(root / 'osprey' / f'osprey_{split}.json', wrap)
    assert check_config(config).faults == []


def test_what_is_read_otherwise_than_it_stands_there_is_named(config, root):
    content = [
        dict(
            file_name='train/000001.png',
            caption='A red cat.',
            groundings={
                'dog': dict(
                    token_positives=[2, 5], rle_masks=[dict(size=[64, 64], counts=[9, 99, 3988])]
                )
            },
        )
    ]
    (root / 'gcg.json').write_text(json.dumps(content))
    config['train_dataloader']['dataset']['datasets'][1].update(
        type='GranDfDataset', ann_file='gcg.json'
    )
    fault = faults(config)[REGIONS, 'read otherwise']
    assert fault.level == 'warning' and 'token_positives' in fault.message


def test_a_rotation_that_is_ignored(config, root):
    path = root / 'images' / 'train' / '000001.png'
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)
    fault = faults(config)[REFS, 'read otherwise']
    assert fault.level == 'warning' and '000001.png' in fault.message
    assert ROTATION_IGNORED in fault.message


def test_a_polygon_outside_the_image(config, root):
    def move(content):
        for annotation in content['annotations']:
            if isinstance(annotation['segmentation'], list):
                annotation['segmentation'][0][0] = 640.0

    edit(root / 'refcoco' / 'instances.json', move)
    fault = faults(config)[REFS, 'out of range']
    assert '(640, ' in fault.message and '64x64' in fault.message


def test_an_empty_mask(config, root):
    def empty(content):
        for annotation in content['annotations']:
            annotation['segmentation'] = dict(size=[64, 64], counts=[64 * 64])

    edit(root / 'refcoco' / 'instances.json', empty)
    fault = faults(config)[REFS, 'empty mask']
    assert fault.level == 'warning' and 'has no pixel' in fault.message


def test_a_region_that_does_not_exist(config, root):
    def point_elsewhere(content):
        content[0]['conversations'][0]['value'] = 'What is <region9>?'

    edit(root / 'osprey' / 'osprey_train.json', point_elsewhere)
    fault = faults(config)[REGIONS, 'left out']
    assert 'region # is mentioned' in fault.message and fault.level == 'error'


def test_an_empty_expression(config, root):
    path = root / 'refcoco' / 'refs(unc).p'
    refs = pickle.loads(path.read_bytes())  # noqa: S301  we wrote it
    refs[0]['sentences'][0]['raw'] = ' . '
    path.write_bytes(pickle.dumps(refs, 2))
    fault = faults(config)[REFS, 'left out']
    assert fault.message == 'empty expression' and fault.level == 'warning'


def test_a_token_that_only_the_pipeline_may_write(config, root):
    def write_token(content):
        content[0]['conversations'][0]['value'] = 'What is <region1> <vpatch>?'

    edit(root / 'osprey' / 'osprey_train.json', write_token)
    assert '<vpatch>' in faults(config)[REGIONS, 'unusable sample'].message


def test_training_images_that_are_evaluated(config, root):
    config['test_dataloader'][0]['dataset']['split'] = 'train'
    report = check_config(config)
    fault, *_ = [f for f in report.faults if f.dataset == REFS]
    assert fault.kind == 'overlap' and fault.level == 'warning'
    assert '24 of 24' in fault.message and 'exclude_images' in fault.message
    assert len(report.overlap) == 24
    assert all(key.endswith('.png') for key in report.overlap)


def test_many_faults_are_summed_up(config, root):
    for path in (root / 'images' / 'train').iterdir():
        path.write_bytes(b'')
    text = check_config(config).text()
    assert '... and 19 more: unusable sample' in text
    assert text.endswith('48 errors, 0 warnings')
