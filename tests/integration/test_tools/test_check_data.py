"""tools/misc/check_data.py on files, as a user runs it."""

import shutil
import socket

import pytest

from pixelsail_mm.worlds.shapes_world import make_shapes_world

CONFIG = 'configs/pixelsail/pixelsail_mini.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('check') / 'world'
    make_shapes_world(root, 'mini', counts=dict(train=6, val=2, test=4))
    return root


@pytest.fixture
def check(run_command, warm_python, data):
    def run(*arguments, config=CONFIG, data=data, **more):
        if more:  # the tool itself must not look for a hub
            more['HF_HUB_OFFLINE'] = None
        tool = (warm_python, 'tools/misc/check_data.py', config)
        done = run_command(*tool, *arguments, PIXELSAIL_DATA=str(data), **more)
        return done.returncode, done.stdout, done.stderr

    return run


def test_sound_data(check):
    status, output, progress = check('--samples', '3')
    assert status == 0, output
    assert 'train_dataloader.dataset' in output and '0 errors, 0 warnings' in output
    assert 'samples' in progress


def test_faults_and_exit_status(check, data):
    image = data / 'images' / 'train' / '000002.png'
    content = image.read_bytes()
    image.unlink()
    try:
        status, output, _ = check()
    finally:
        image.write_bytes(content)
    assert status == 1 and '000002.png' in output and 'no such image' in output


def test_overlap_is_written_and_excluded(check, tmp_path):
    options = ['test_dataloader.0.dataset.split=train', 'val_dataloader.0.dataset.split=train']
    overlap = tmp_path / 'overlap.txt'
    status, output, _ = check('--write-overlap', overlap, '--cfg-options', *options)
    assert status == 0 and 'evaluation images' in output and '6 images written' in output
    assert len(overlap.read_text().splitlines()) == 6
    assert check('--strict', '--cfg-options', *options)[0] == 1


@pytest.fixture(scope='module')
def public(tmp_path_factory):
    """The public folders, without any training file of the recipe but RefCOCO's."""
    from pixelsail_mm.worlds.shapes_world.formats.public_layout import write_public_layout

    folder = tmp_path_factory.mktemp('public')
    make_shapes_world(folder / 'world', 'full', counts=dict(train=4, val=2, test=3))
    write_public_layout(folder / 'world', folder / 'data', 0)
    shutil.rmtree(folder / 'data' / 'muse')
    return folder / 'data'


@pytest.fixture
def hub():
    """A port that takes calls; accept() says whether one came."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.slow
def test_of_a_benchmark_the_test_sets_are_checked(check, public, hub, tmp_path):
    """With the model of --model, and without a hub for the tokenizer of the other one."""
    refcoco = 'configs/benchmarks/refcoco.py'
    status, output, _ = check(
        config=refcoco,
        data=public,
        HF_HOME=str(tmp_path),
        HF_ENDPOINT=f'http://127.0.0.1:{hub.getsockname()[1]}',
    )
    with pytest.raises(BlockingIOError):
        hub.accept()
    assert status == 0 and '0 errors, 0 warnings' in output, output
    assert 'not checked: lengths in tokens' in output and 'Qwen/Qwen2.5-0.5B' in output
    assert [line.split(' ')[0] for line in output.splitlines() if ' items of ' in line] == [
        f'test_dataloader[{i}].dataset' for i in range(3)
    ]
    status, output, _ = check(
        '--model', 'configs/pixelsail/pixelsail_tiny.py', config=refcoco, data=public
    )
    assert status == 0 and 'not checked' not in output and output.count(' items of ') == 3


def test_model_is_for_benchmarks(check):
    status, _, errors = check('--model', CONFIG)
    assert status == 2 and 'has a model of its own' in errors


def test_a_missing_config(check):
    status, _, errors = check(config='configs/gone.py')
    assert status == 2 and 'gone.py: no such file' in errors
