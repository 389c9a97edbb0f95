"""Evaluation with one and two processes, killed and resumed, in real processes."""

import json
import re
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from pixelsail_mm.worlds.shapes_world import make_shapes_world

CONFIG = 'tests/integration/test_training/evaluation_config.py'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Data of all tests below: numbers of samples that no batch size and 2 divide."""
    folder = tmp_path_factory.mktemp('evaluation')
    make_shapes_world(str(folder / 'world'), 'full', 1, dict(train=1, val=1, test=9))
    return folder


@pytest.fixture
def evaluate(run_tool, warm_python, repo_root, place):
    """Test the shipped model; gives the status, the output and the metrics."""
    shipped = repo_root / 'demo/checkpoints/pixelsail_tiny/model.safetensors'

    def run(work_dir, *args, processes=1, checkpoint=shipped, options=()):
        tool = (
            [warm_python, 'tools/test.py', CONFIG, checkpoint]
            if processes == 1
            else ['bash', 'tools/dist_test.sh', CONFIG, checkpoint, processes]
        )
        out = work_dir / 'results.json'
        out.unlink(missing_ok=True)
        sizes = [
            f'test_dataloader.{index}.{key}={value}'
            for index, size in enumerate((18, 11, 2))
            for key, value in (('batch_size', 4), ('dataset.indices', size))
        ]
        status, output = run_tool(
            *tool,
            '--work-dir',
            work_dir,
            '--out',
            out,
            *args,
            '--cfg-options',
            *sizes,
            *options,
            PIXELSAIL_DATA=str(place / 'world'),
        )
        metrics = json.loads(out.read_text())['metrics'] if out.exists() else None
        return SimpleNamespace(status=status, output=output, metrics=metrics)

    return run


@pytest.fixture
def whole(evaluate, place):
    """Metrics of one process from the beginning to the end."""
    path = place / 'whole/results.json'
    if not path.exists():
        done = evaluate(place / 'whole')
        assert done.status == 0, done.output[-4000:]
    return json.loads(path.read_text())['metrics']


def stored(work_dir, name):
    """Lines of all processes by number of batch."""
    lines = {}
    for path in (work_dir / 'predictions' / name).glob('rank*.jsonl'):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            lines.setdefault(entry['batch'], []).append(entry)
    return lines


def resumed(output):
    """Numbers of the log: {test set: (resumed, all)}."""
    return {
        name: (int(count), int(total))
        for name, count, total in re.findall(r'(\w+): resumed (\d+) of (\d+) samples', output)
    }


def kill_at(batches, rank=0):
    return [f'custom_hooks.0.batches={batches}', f'custom_hooks.0.rank={rank}']


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(evaluate, whole, place, tmp_path):
    done = evaluate(tmp_path, processes=2)
    assert done.status == 0, done.output[-4000:]
    assert done.metrics == whole
    # The model does work that could go wrong.
    assert 0.2 < whole['refseg/cIoU'] < 0.98 and whole['mcq/accuracy'] > 0.3
    for name, batches in (('0_refseg', 5), ('1_mcq', 3), ('2_shuffled', 1)):
        one, two = stored(place / 'whole', name), stored(tmp_path, name)
        assert sorted(one) == sorted(two) == list(range(batches))
        for number, (entry,) in one.items():
            # Masks, scores to the last bit, and the inputs of the whole batch.
            assert all(other == entry for other in two[number])


@pytest.mark.slow
def test_two_processes_resume_what_one_wrote(evaluate, whole, tmp_path):
    killed = evaluate(tmp_path, options=kill_at(7))
    assert killed.status == -9 and killed.metrics is None
    assert sorted(stored(tmp_path, '0_refseg')) == [0, 1, 2, 3, 4]
    assert sorted(stored(tmp_path, '1_mcq')) == [0, 1]
    with open(tmp_path / 'predictions/1_mcq/rank0.jsonl', 'ab') as file:
        file.write(b'{"batch": 2, "inputs": "')
    done = evaluate(tmp_path, '--resume', processes=2)
    assert done.status == 0, done.output[-4000:]
    assert done.metrics == whole
    assert 'dropped its last line' in done.output
    assert resumed(done.output) == {'0_refseg': (18, 18), '1_mcq': (8, 11), '2_shuffled': (0, 2)}
    # What was stored was not computed again, but by who had to keep the other one company.
    assert [len(entries) for _, entries in sorted(stored(tmp_path, '0_refseg').items())] == [1] * 5
    assert [len(entries) for _, entries in sorted(stored(tmp_path, '1_mcq').items())] == [2, 1, 1]


@pytest.mark.slow
def test_one_process_resumes_what_two_wrote(evaluate, whole, tmp_path):
    killed = evaluate(tmp_path, processes=2, options=kill_at(1, rank=1))
    assert killed.status != 0 and killed.metrics is None
    before = sorted(stored(tmp_path, '0_refseg'))
    assert 1 in before and 3 not in before
    done = evaluate(tmp_path, '--resume')
    assert done.status == 0, done.output[-4000:]
    assert done.metrics == whole
    after = stored(tmp_path, '0_refseg')
    assert sorted(after) == list(range(5)) and all(len(entries) == 1 for entries in after.values())
    sizes = [4, 4, 4, 4, 2]
    assert resumed(done.output)['0_refseg'] == (sum(sizes[number] for number in before), 18)


@pytest.mark.slow
def test_another_checkpoint_is_refused(evaluate, whole, place, repo_root, tmp_path):
    weights = load_file(repo_root / 'demo/checkpoints/pixelsail_tiny/model.safetensors')
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, tmp_path / 'other.safetensors')
    before = stored(place / 'whole', '0_refseg')
    done = evaluate(
        place / 'whole',
        '--resume',
        checkpoint=tmp_path / 'other.safetensors',
        options=['model.generation.max_new_tokens=5'],
    )
    assert done.status == 2 and 'Traceback' not in done.output
    assert 'checkpoint.sha256' in done.output
    assert 'model.generation.max_new_tokens: 24 -> 5' in done.output
    assert 'run without --resume' in done.output
    assert stored(place / 'whole', '0_refseg') == before


@pytest.mark.slow
def test_resuming_needs_batches_that_are_the_same_for_all(
    run_tool, warm_python, repo_root, tmp_path
):
    # Refused before the weights are read, so those of any model will do.
    weights = repo_root / 'demo/checkpoints/pixelsail_tiny/model.safetensors'
    status, output = run_tool(
        warm_python,
        'tools/test.py',
        'tests/test_engine/toy_config.py',
        weights,
        '--work-dir',
        tmp_path,
        '--resume',
    )
    assert status == 2 and '--resume: test_dataloader[0]' in output
    assert "batch_sampler=dict(type='EvaluationBatchSampler')" in output
