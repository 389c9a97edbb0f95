"""The trained models in demo/checkpoints: what is recorded beside them is what they do."""

import json

import pytest
import skimage.data

from pixelsail_mm.apis import PixelSAILInferencer
from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.worlds.shapes_world import make_shapes_world
from pixelsail_mm.worlds.shapes_world.formats.public_layout import write_public_layout

GROUNDING, WHOLE_MIX = 'pixelsail_tiny_grounding', 'pixelsail_tiny'
# Twice the standard error of a mean over 120 test items, generously.
TOLERANCE = 0.1


@pytest.fixture(scope='module', params=[GROUNDING, WHOLE_MIX])
def shipped(request, repo_root):
    return repo_root / 'demo/checkpoints' / request.param


def record_of(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Images of the same kind from another seed: neither trained nor tested on."""
    folder = tmp_path_factory.mktemp('world') / 'new'
    make_shapes_world(str(folder), 'full', 1, dict(train=2, val=1, test=60))
    return folder


def test_size_and_records_match_the_weights(shipped):
    files = [file for file in shipped.rglob('*') if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10e6
    records = [*shipped.glob('result.json'), *shipped.glob('results/*.json')]
    assert records
    for path in records:
        result = json.loads(path.read_text())
        assert result['checkpoint']['sha256'] == sha256_of(shipped / 'model.safetensors')


def test_every_benchmark_is_recorded(repo_root):
    recorded = {
        path.stem
        for path in (repo_root / 'demo/checkpoints' / WHOLE_MIX / 'results').glob('*.json')
    }
    assert recorded == {path.stem for path in (repo_root / 'configs/benchmarks').glob('*.py')}


def test_tokenizer_is_the_one_the_generator_makes(shipped, world):
    """So ``tools/test.py CONFIG`` on newly drawn data reads the shipped weights rightly."""
    ours, theirs = (
        json.loads((folder / 'tokenizer.json').read_text())
        for folder in (world / 'tokenizer', shipped)
    )
    assert ours['model'] == theirs['model']


def test_answers_of_the_shipped_model(shipped, world):
    ask = PixelSAILInferencer(shipped, device='cpu')
    image = sorted((world / 'images/test').iterdir())[0]
    result = ask(str(image), 'Please segment the leftmost shape.')
    assert len(result['masks']) == 1 and 0 < result['masks'][0].mean() < 0.5
    answer = ask(
        str(image),
        'What is the colour of <Prompt0>?',
        prompts=[dict(id=0, mask=result['masks'][0])],
    )['text']
    assert answer.strip()


def test_photos_are_scaled_to_what_it_was_trained_on(shipped):
    ask = PixelSAILInferencer(shipped, device='cpu')
    result = ask(skimage.data.chelsea(), 'Please segment the leftmost shape.')
    assert result['text'] and result['masks'].shape[1:] == (300, 451)
    assert result['warnings'][0].startswith('the picture of 451x300 pixels is scaled to 80x56')


def test_words_that_were_not_read_in_training_are_said(repo_root):
    """The record of the whole mix holds more words; both know none of animals."""
    ask = PixelSAILInferencer(repo_root / 'demo/checkpoints' / GROUNDING, device='cpu')
    image = str(repo_root / 'demo/shapes.jpg')
    for known in ('Please segment the leftmost shape.', 'What is the colour of <Prompt0>?'):
        boxes = [[18, 22, 44, 50]] if 'Prompt' in known else None
        assert ask(image, known, boxes)['warnings'] == []
    said = ask(image, 'Please segment the cat in this image.')['warnings'][0]
    assert "samples that were read: 'cat', 'in', 'this', 'image' (as written" in said


@pytest.fixture
def evaluate(run_command, warm_python, tmp_path):
    """Give the metrics of ``tools/test.py``."""

    def run(data, *arguments):
        result = tmp_path / 'result.json'
        more = ('--work-dir', tmp_path / 'work', '--out', result)
        done = run_command(
            warm_python, 'tools/test.py', *arguments, *more, PIXELSAIL_DATA=str(data)
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return record_of(tmp_path, 'result.json')['metrics']

    return run


@pytest.mark.integration
@pytest.mark.slow
def test_recorded_scores_of_grounding_hold_on_new_images(evaluate, repo_root, world):
    folder = repo_root / 'demo/checkpoints' / GROUNDING
    scores = evaluate(world, f'configs/pixelsail/{GROUNDING}.py', folder / 'model.safetensors')
    recorded = record_of(folder, 'result.json')['metrics']
    for key in ('refseg/cIoU', 'mcq/accuracy', 'shuffled/cIoU'):
        assert scores[key] == pytest.approx(recorded[key], abs=TOLERANCE), key
    assert scores['shuffled/cIoU'] < 0.5 * scores['refseg/cIoU']


@pytest.mark.integration
@pytest.mark.slow
def test_recorded_scores_of_the_whole_mix_hold_on_new_images(evaluate, repo_root, world, tmp_path):
    write_public_layout(world, tmp_path / 'data')
    folder = repo_root / 'demo/checkpoints' / WHOLE_MIX
    scores = evaluate(
        tmp_path / 'data',
        'configs/benchmarks/grefcoco.py',
        folder / 'model.safetensors',
        '--model',
        f'configs/pixelsail/{WHOLE_MIX}.py',
    )
    recorded = record_of(folder, 'results/grefcoco.json')['metrics']
    for key in (
        'grefcoco_testA/cIoU',
        'grefcoco_testB/gIoU',
        'grefcoco_testA/N-acc',
        'grefcoco_testB/T-acc',
    ):
        assert scores[key] == pytest.approx(recorded[key], abs=TOLERANCE), key
