"""demo/image_demo.py: command line in, text and files out."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='module')
def demo(repo_root):
    spec = importlib.util.spec_from_file_location('image_demo', repo_root / 'demo/image_demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'scene.png'
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)
    return path


def test_answer_picture_and_masks(demo, shipped, image, tmp_path, capsys):
    out = tmp_path / 'new/out'
    demo.run(
        demo.parse_args(
            [
                str(image),
                'Where?',
                '--model',
                str(shipped),
                '--device',
                'cpu',
                '--out-dir',
                str(out),
                '--answer-prefix',
                'It is [SEG].',
                '--max-new-tokens',
                '1',
            ]
        )
    )
    printed = capsys.readouterr().out
    assert printed.startswith('It is [SEG].') and f'wrote {out / "scene_answer.png"}' in printed
    assert Image.open(out / 'scene_answer.png').size[0] > 256
    mask = np.asarray(Image.open(out / 'scene_mask0.png'))
    assert mask.shape == (20, 30) and set(np.unique(mask)) <= {0, 255}


def test_prompts_keep_the_order_of_the_command_line(demo):
    args = demo.parse_args(
        [
            'a.png',
            'Q',
            '--point',
            '1,2',
            '--box',
            '1,2,3,4',
            '5,6,7,8',
            '--mask',
            'm.png',
            '--point',
            '3,4',
        ]
    )
    assert args.prompts == [
        dict(point=[1, 2]),
        dict(box=[1, 2, 3, 4]),
        dict(box=[5, 6, 7, 8]),
        dict(mask='m.png'),
        dict(point=[3, 4]),
    ]
    assert demo.parse_args(['a.png', 'Q']).prompts == []


@pytest.mark.parametrize('value', ['1,2,3', 'a,b,c,d', ''])
def test_malformed_box(demo, value, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args(['a.png', 'Q', '--box', value])
    assert '--box takes 4 numbers' in capsys.readouterr().err


def test_mask_files_become_prompts(demo, shipped, image, tmp_path, capsys):
    region = np.zeros((20, 30), np.uint8)
    region[5:15, 5:15] = 255
    Image.fromarray(region).save(tmp_path / 'm.png')
    demo.run(
        demo.parse_args(
            [
                str(image),
                'What is <Prompt0>?',
                '--mask',
                str(tmp_path / 'm.png'),
                '--model',
                str(shipped),
                '--device',
                'cpu',
                '--out-dir',
                str(tmp_path),
            ]
        )
    )
    assert 'scene_answer.png' in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.slow
def test_user_mistakes_end_in_one_message(run_command, warm_python, shipped):
    result = run_command(warm_python, 'demo/image_demo.py', 'gone.png', 'Q', '--model', shipped)
    assert result.returncode == 2
    assert 'gone.png: image: no such file; check the path' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.integration
def test_help_is_quick(repo_root):
    code = (
        "import runpy, sys; sys.argv = ['image_demo.py', '--help']\n"
        f"try: runpy.run_path({str(repo_root / 'demo/image_demo.py')!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip().endswith('False')
