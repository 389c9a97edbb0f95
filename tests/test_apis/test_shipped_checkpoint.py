"""The trained model in demo/checkpoints: what is recorded beside it is what it does."""

import json
import os
import subprocess
import sys

import pytest

from pixelsail_mm.apis import PixelSAILInferencer
from pixelsail_mm.datasets.shapes_world import make_shapes_world
from pixelsail_mm.engine.results import sha256_of

CONFIG = 'configs/pixelsail/pixelsail_tiny.py'
# Twice the standard error of a mean over 120 test items, generously.
TOLERANCE = 0.1


@pytest.fixture(scope='module')
def shipped(repo_root):
    return repo_root / 'demo/checkpoints/pixelsail_tiny'


@pytest.fixture(scope='module')
def recorded(shipped):
    return json.loads((shipped / 'result.json').read_text())


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Images of the same kind from another seed: neither trained nor tested on."""
    folder = tmp_path_factory.mktemp('world') / 'new'
    make_shapes_world(str(folder), 'full', 1, dict(train=2, val=1, test=60))
    return folder


def test_size_and_record_match_the_weights(shipped, recorded):
    files = [file for file in shipped.rglob('*') if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10e6
    assert recorded['checkpoint']['sha256'] == sha256_of(shipped / 'model.safetensors')


def test_tokenizer_is_the_one_the_generator_makes(shipped, world):
    """So ``tools/test.py CONFIG`` on newly drawn data reads the shipped weights rightly."""
    ours, theirs = (json.loads((folder / 'tokenizer/tokenizer.json').read_text())
                    for folder in (world, shipped))
    assert ours['model'] == theirs['model']


def test_answers_of_the_shipped_model(shipped, world):
    ask = PixelSAILInferencer(shipped, device='cpu')
    image = sorted((world / 'images/test').iterdir())[0]
    result = ask(str(image), 'Please segment the leftmost shape.')
    assert len(result['masks']) == 1 and 0 < result['masks'][0].mean() < 0.5
    answer = ask(str(image), 'What is the colour of <Prompt0>?',
                 prompts=[dict(id=0, mask=result['masks'][0])])['text']
    assert answer.strip()


@pytest.mark.slow
def test_recorded_scores_hold_on_new_images(repo_root, shipped, recorded, world, tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/test.py', CONFIG, shipped / 'model.safetensors', '--work-dir',
         tmp_path / 'work', '--out', tmp_path / 'result.json'], cwd=repo_root, text=True,
        env=dict(os.environ, PIXELSAIL_DATA=str(world), PYTHONPATH=str(repo_root)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=540)
    assert done.returncode == 0, done.stdout[-4000:]
    scores = json.loads((tmp_path / 'result.json').read_text())['metrics']
    for key in ('refseg/cIoU', 'mcq/accuracy', 'shuffled/cIoU'):
        assert scores[key] == pytest.approx(recorded['metrics'][key], abs=TOLERANCE), key
    assert scores['shuffled/cIoU'] < 0.5 * scores['refseg/cIoU']
