"""Predictions stored during an evaluation, and read again when it is resumed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pixelsail_mm.engine.loops.prediction_store import PredictionStore, checksum_of, fields_of
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.structures import PixelDataSample

CONFIG = 'tests/integration/test_training/evaluation_config.py'
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
