"""Evaluation with one and two processes, killed and resumed, in real processes."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file

from pixelsail_mm.engine.loops.prediction_store import PredictionStore, checksum_of, fields_of
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.worlds.shapes_world import make_shapes_world

CONFIG = 'tests/test_engine/evaluation_config.py'
SETTINGS = dict(checkpoint=dict(sha256='aa'), pipeline=[dict(size=8)], samples=4)


# The store by itself.


def opened(folder, settings=SETTINGS, resume=True):
    store = PredictionStore(folder, settings, resume)
    store.open()
    return store


def loaded(sample_id='s', shape=(3, 4)):
    return PixelDataSample(metainfo=dict(sample_id=sample_id, dataset='d', ori_shape=shape))


def predict(sample, masks, scores, text='It is [SEG].'):
    sample.pred_masks, sample.pred_scores = torch.from_numpy(masks), torch.from_numpy(scores)
    sample.pred_text = text
    sample.pred_token_ids = torch.arange(3)
    sample.retried = True
    sample.set_metainfo(dict(attempts=[1, None, 0.1, 'x']))
    return sample


def written(folder, numbers=(0, 1), resume=False):
    """Batches of one sample each."""
    store = opened(folder, resume=resume)
    for number in numbers:
        known = [fields_of(loaded())]
        store.write(
            number,
            f'sum{number}',
            [predict(loaded(), np.ones((1, 3, 4), bool), np.float32([number]))],
            known,
        )
    store.close()
    return folder / 'rank0.jsonl'


@given(data=st.data())
def test_predictions_come_back_exactly(tmp_path_factory, data):
    count, height, width = data.draw(st.tuples(st.integers(0, 3), *[st.integers(1, 9)] * 2))
    masks = data.draw(arrays(bool, (count, height, width)))
    scores = data.draw(arrays(np.float32, count, elements=st.floats(width=32)))
    text = data.draw(st.text())
    folder = tmp_path_factory.mktemp('store')
    before = loaded(shape=(height, width))
    expected = predict(loaded(shape=(height, width)), masks, scores, text)
    store = opened(folder)
    store.write(3, 'sum', [expected], [fields_of(before)])
    store.close()
    store = opened(folder)
    assert 3 in store and 0 not in store
    store.fill(3, 'sum', [before])
    assert fields_of(before) == fields_of(expected)
    np.testing.assert_array_equal(before.pred_masks.numpy(), masks)
    assert before.pred_masks.shape == masks.shape
    # Their bits, since NaN is not equal to itself.
    assert before.pred_scores.numpy().tobytes() == scores.tobytes()
    assert before.pred_text == text and before.retried is True
    assert before.pred_token_ids.dtype == torch.int64 and before.attempts == [1, None, 0.1, 'x']


def test_text_only_sample(tmp_path):
    expected = predict(loaded(shape=(0, 0)), np.zeros((0, 0, 0), bool), np.zeros(0, np.float32))
    store = opened(tmp_path)
    store.write(0, 'sum', [expected], [fields_of(loaded(shape=(0, 0)))])
    store.close()
    sample = loaded(shape=(0, 0))
    opened(tmp_path).fill(0, 'sum', [sample])
    assert sample.pred_masks.shape == (0, 0, 0)


def test_what_cannot_be_stored_is_named(tmp_path):
    sample = loaded()
    sample.attention = dict(a=1)
    with pytest.raises(TypeError, match="dict into field 'attention'"):
        opened(tmp_path).write(0, 'sum', [sample], [fields_of(loaded())])


@pytest.mark.parametrize('rest', [b'{"batch": 2, "inp', b'{"batch": 2}', b'\0\0'])
def test_torn_last_line_is_dropped_and_cut_off(tmp_path, rest):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    store = opened(tmp_path)
    assert [number in store for number in range(3)] == [True, True, False]
    store.close()
    assert path.read_bytes() == whole
    written(tmp_path, [2], resume=True)
    assert 2 in opened(tmp_path)


def test_damage_inside_a_file_is_named(tmp_path):
    path = written(tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:-20] + b'\n' + second)
    with pytest.raises(ConfigError, match=r'rank0\.jsonl is damaged at byte 0'):
        opened(tmp_path)
    (tmp_path / 'settings.json').write_text('{')
    with pytest.raises(ConfigError, match=r'settings\.json is damaged'):
        opened(tmp_path)


def test_without_resume_older_predictions_are_replaced(tmp_path):
    written(tmp_path)
    (tmp_path / 'rank7.jsonl').write_text('of a run with more processes')
    written(tmp_path, [1], resume=False)
    store = opened(tmp_path)
    assert 1 in store and 0 not in store
    assert not (tmp_path / 'rank7.jsonl').exists()


@pytest.mark.parametrize(
    'change, named',
    [
        (dict(checkpoint=dict(sha256='bb')), "checkpoint.sha256: 'aa' -> 'bb'"),
        (dict(pipeline=[dict(size=16)]), r'pipeline\[0\].size: 8 -> 16'),
        (dict(pipeline=[]), r"pipeline: \[\{'size': 8\}\] -> \[\]"),
        (dict(version=2), 'version: None -> 2'),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, named):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f'(?s){named}.*without --resume'):
        opened(tmp_path, SETTINGS | change)
    assert path.read_bytes() == before


def test_other_inputs_are_refused(tmp_path):
    written(tmp_path)
    store = opened(tmp_path)
    with pytest.raises(ConfigError, match='other inputs than those of batch 1'):
        store.fill(1, 'another sum', [loaded()])
    with pytest.raises(ConfigError, match='other inputs than those of batch 1'):
        store.fill(1, 'sum1', [loaded('another sample')])
    store.fill(1, 'sum1', [loaded()])


def test_checksum_sees_every_difference():
    values = [
        [],
        [[]],
        None,
        'None',
        ['ab'],
        ['a', 'b'],
        [1],
        ['1'],
        [True],
        dict(a=1),
        dict(b=1),
        torch.tensor([1, 2]),
        torch.tensor([1, 3]),
        torch.tensor([[1, 2]]),
        torch.tensor([1.0, 2.0]),
        [torch.tensor([1]), torch.tensor([2])],
        [(1, 2), 3],
        [(1,), 2, 3],
    ]
    assert len({checksum_of(value) for value in values}) == len(values)
    assert checksum_of(dict(a=1, b=torch.tensor([1]))) == checksum_of(dict(b=np.array([1]), a=1))


# The tool.


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Data of all tests below: numbers of samples that no batch size and 2 divide."""
    folder = tmp_path_factory.mktemp('evaluation')
    make_shapes_world(str(folder / 'world'), 'full', 1, dict(train=1, val=1, test=9))
    return folder


@pytest.fixture
def evaluate(run_tool, repo_root, place):
    """Test the shipped model; gives the status, the output and the metrics."""
    shipped = repo_root / 'demo/checkpoints/pixelsail_tiny/model.safetensors'

    def run(work_dir, *args, processes=1, checkpoint=shipped, options=()):
        tool = (
            [sys.executable, 'tools/test.py', CONFIG, checkpoint]
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
def test_resuming_needs_batches_that_are_the_same_for_all(run_tool, repo_root, tmp_path):
    # Refused before the weights are read, so those of any model will do.
    weights = repo_root / 'demo/checkpoints/pixelsail_tiny/model.safetensors'
    status, output = run_tool(
        sys.executable,
        'tools/test.py',
        'tests/test_engine/toy_config.py',
        weights,
        '--work-dir',
        tmp_path,
        '--resume',
    )
    assert status == 2 and '--resume: test_dataloader[0]' in output
    assert "batch_sampler=dict(type='EvaluationBatchSampler')" in output
