"""docs/custom_data.md, done: its commands in order, in a copy of the folders they name."""

import json
import os
import re
import shutil
import subprocess

import pytest
from mmengine import Config
from PIL import Image

# The documented training takes 400; this is the one thing that is changed in the commands.
ITERATIONS = 130
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
TRAINING = re.compile(r'(tools/train\.py \S+)')


@pytest.fixture(scope='module')
def blocks(repo_root):
    """(language, content, text up to the block before) of every code block."""
    text, end, found = (repo_root / 'docs/custom_data.md').read_text(encoding='utf-8'), 0, []
    for block in BLOCK.finditer(text):
        found.append((*block.groups(), text[end : block.start()]))
        end = block.end()
    return found


@pytest.fixture(scope='module')
def folder(repo_root, warm_python, tmp_path_factory):
    """What a user has: the repository, with nothing in data/ and work_dirs/."""
    folder = tmp_path_factory.mktemp('custom_data')
    for name in ('pixelsail_mm', 'tools', 'demo'):
        (folder / name).symlink_to(repo_root / name)
    shutil.copytree(repo_root / 'configs', folder / 'configs')
    python = folder / 'bin/python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{warm_python}" "$@"\n')
    python.chmod(0o755)
    return folder


def run(folder, script):
    environment = {name: value for name, value in os.environ.items() if name != 'PIXELSAIL_DATA'}
    environment.update(
        PYTHONPATH=str(folder), OMP_NUM_THREADS='1', PATH=f'{folder / "bin"}:{environment["PATH"]}'
    )
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, f'{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two minutes of one core, several on a busy machine
def test_the_commands_lead_to_a_better_model(blocks, folder):
    scripts = [content for language, content, _ in blocks if language == 'bash']
    assert sum(len(TRAINING.findall(script)) for script in scripts) == 1
    shown = 0
    for (language, content, _), following in zip(blocks, [*blocks[1:], ('', '', '-')]):
        if language != 'bash':
            continue
        output = run(
            folder, TRAINING.sub(rf'\1 --cfg-options train_cfg.max_iters={ITERATIONS}', content)
        )
        # A text right behind commands is what they print.
        if following[0] == 'text' and not following[2].strip():
            assert following[1] in output
            shown += 1
    assert shown >= 3
    before, after = (
        json.loads((folder / f'work_dirs/{name}.json').read_text()) for name in ('before', 'after')
    )
    assert before['datasets'][0]['samples'] == after['datasets'][0]['samples'] == 120
    assert after['metrics']['refseg/cIoU'] > before['metrics']['refseg/cIoU'] + 0.06
    assert after['metrics']['refseg/Pr@0.5'] > before['metrics']['refseg/Pr@0.5'] + 0.1
    assert list((folder / 'work_dirs/pictures').rglob('*.png'))
    with Image.open(folder / 'work_dirs/answer/val_0000_mask0.png') as mask:
        assert mask.size == (80, 80) and mask.getextrema() == (0, 255)


def test_lines_of_the_config_are_quoted_as_they_are(blocks, repo_root):
    config = (repo_root / 'configs/pixelsail/pixelsail_tiny_custom.py').read_text('utf-8')
    (quoted,) = (
        content
        for language, content, _ in blocks
        if language == 'python' and content.startswith('data_root')
    )
    for line in quoted.splitlines():
        assert line in config.splitlines()


def test_mix_of_the_documentation(blocks, folder):
    """The public readers with their repeats, then the user's; what it inherits stays."""
    (mix,) = (content for language, content, _ in blocks if '_base_.train_dataloader' in content)
    path = folder / 'configs/my_mix.py'
    path.write_text(mix)
    cfg = Config.fromfile(path)
    public = Config.fromfile(folder / 'configs/pixelsail/pixelsail_0.5b.py').train_dataloader
    mixed = cfg.train_dataloader.dataset
    assert mixed.datasets[:-1] == public.dataset.datasets
    assert mixed.datasets[-1].type == 'PixelChatDataset'
    assert mixed.repeats == [*public.dataset.repeats, 2]
    assert cfg.train_dataloader.sampler == public.sampler and mixed.pipeline


@pytest.mark.parametrize(
    'options, message',
    [
        ([], 'masks.csv does not exist; write the table there'),
        (['--val-share', '1'], 'val_share must be at least 0 and below 1'),
        (['--draw-example'], 'not empty; it is left untouched'),
    ],
)
def test_mistakes_give_one_message(repo_root, warm_python, tmp_path, options, message):
    (tmp_path / 'x').touch()
    done = subprocess.run(
        [warm_python, 'tools/dataset_converters/masks_to_pixel_chat.py', str(tmp_path), *options],
        cwd=repo_root,
        env=dict(os.environ, PYTHONPATH=str(repo_root)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert message in done.stderr
