"""Settings of a training: every change is found, judged and printed in full."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsail_mm.config import read_config
from pixelsail_mm.engine.strategies.deepspeed import read_preset
from pixelsail_mm.engine.training_settings import compare, configured_settings, table


@pytest.mark.parametrize(
    ('part', 'saved', 'now', 'effect'),
    [
        (
            'optim_wrapper',
            dict(loss_scale='dynamic'),
            dict(loss_scale=64.0),
            'applied after one step',
        ),
        ('optim_wrapper', dict(loss_scale=64.0), dict(loss_scale='dynamic'), 'not used'),
        (
            'optim_wrapper',
            dict(loss_scale=dict(growth_interval=5)),
            dict(loss_scale=dict(growth_interval=9)),
            'not used',
        ),
        (
            'deepspeed',
            dict(fp16=dict(enabled=True, min_loss_scale=1)),
            dict(fp16=dict(enabled=True, min_loss_scale=4)),
            'not used',
        ),
    ],
)
def test_the_loss_scale_of_the_checkpoint_goes_on(part, saved, now, effect):
    (change,) = compare({part: saved}, {part: now}, 2)
    assert change.effect.startswith(effect) and not change.refused and not change.schedules


def settings(max_iters=6, accumulation=1, stage=None, processes=1):
    return dict(
        max_iters=max_iters,
        processes=processes,
        optim_wrapper=dict(accumulative_counts=accumulation),
        deepspeed=stage and dict(zero_optimization=dict(stage=stage)),
    )


def test_a_finished_run_whose_last_window_was_short_goes_on_from_a_whole_one():
    saved, now = settings(7, accumulation=2), settings(12, accumulation=2)
    (change,) = compare(saved, now, iteration=7)
    assert change.refused and '7 is not a multiple of 2' in change.effect
    (change,) = compare(saved, now, iteration=6)
    assert not change.refused and change.schedules


@pytest.mark.parametrize(
    'stages, processes, refused',
    [
        ((1, 2), (1, 1), False),
        ((2, 1), (1, 1), False),
        ((2, 3), (1, 1), False),
        ((3, 1), (1, 1), False),
        ((2, 2), (1, 2), False),
        ((None, None), (1, 2), False),
    ],
)
def test_what_deepspeed_cannot_convert_is_refused(stages, processes, refused):
    (change,) = compare(
        *(settings(stage=stage, processes=count) for stage, count in zip(stages, processes)),
        iteration=2,
    )
    assert change.refused == refused


def test_long_values_and_many_rows_are_printed_in_full():
    saved = dict(model={f'key{index:03}': f'{index}' + 'a' * 90 for index in range(60)})
    now = dict(model={f'key{index:03}': f'{index}' + 'b' * 90 for index in range(60)})
    text = table(compare(saved, now, iteration=0))
    assert max(map(len, text.splitlines()[:61])) < 200
    for index in range(60):
        assert f'model.key{index:03} in full:' in text
        assert f'  saved  {index}{"a" * 90}' in text and f'  now    {index}{"b" * 90}' in text


REFUSED, APPLIED, USED = 'refused', 'applied', 'used from here on'
#: Every group of keys of a record: a key of it, what was saved, what is now, what happens.
GROUPS = [
    ('optim_wrapper', dict(clip_grad=dict(max_norm=1)), dict(clip_grad=dict(max_norm=2)), APPLIED),
    ('optim_wrapper', dict(dtype='bfloat16'), dict(dtype='float16'), APPLIED),
    ('optim_wrapper', dict(optimizer=dict(lr=1)), dict(optimizer=dict(lr=2)), APPLIED),
    ('optim_wrapper', dict(optimizer=dict(type='A')), dict(optimizer=dict(type='B')), REFUSED),
    ('param_scheduler', [dict(end=1)], [dict(end=2)], APPLIED),
    ('auto_scale_lr', None, dict(enable=True, base_batch_size=2), APPLIED),
    ('max_iters', 6, 9, APPLIED),
    ('max_iters', 6, 1, REFUSED),
    ('deepspeed', dict(gradient_clipping=1), dict(gradient_clipping=2), APPLIED),
    ('deepspeed', None, dict(zero_optimization=dict(stage=1)), USED),  # refused by its files
    ('deepspeed', dict(fp16=dict(enabled=True)), dict(fp16=dict(enabled=False)), USED),
    ('deepspeed', dict(fp16=dict(loss_scale=0)), dict(fp16=dict(loss_scale=8)), 'not used'),
    ('processes', 1, 2, USED),
    ('randomness', dict(deterministic=False), dict(deterministic=True), USED),
    ('order', dict(seed=0), dict(seed=1), REFUSED),
    ('order', dict(samples_per_iter=1), dict(samples_per_iter=2), REFUSED),
    ('trained_weights', [['a']], [['a', 'b']], REFUSED),
    ('train_dataloader', dict(sampler=dict(type='A')), dict(sampler=dict(type='B')), REFUSED),
    ('train_dataloader', dict(), dict(batch_sampler=dict(type='B')), REFUSED),
    ('train_dataloader', dict(drop_last=False), dict(drop_last=True), REFUSED),
    ('train_dataloader', dict(collate_fn=dict(a=1)), dict(collate_fn=dict(a=2)), USED),
    (
        'train_dataloader',
        dict(dataset=dict(datasets=[1, 2])),
        dict(dataset=dict(datasets=[2, 1])),
        USED,
    ),
    ('model', dict(dropout=0.1), dict(dropout=0.2), USED),
    ('model', dict(tokenizer='a'), dict(tokenizer='b'), USED),  # what is in it counts:
    ('vocabulary', dict(vocabulary='a'), dict(vocabulary='b'), REFUSED),
    ('vocabulary', None, dict(vocabulary='b'), 'not compared'),
    ('custom_hooks', [], [dict(type='EMAHook')], USED),
    ('custom_hooks', [dict(type='EMAHook')], [], REFUSED),
    ('custom_hooks', [dict(type='A', share=1)], [dict(type='A', share=2)], USED),
    ('default_hooks', dict(bad_steps=dict(max_streak=1)), dict(bad_steps=None), USED),
]


@pytest.mark.parametrize('part, saved, now, effect', GROUPS)
def test_every_group_of_keys(part, saved, now, effect):
    changes = compare({part: saved}, {part: now}, iteration=2)
    assert len(changes) >= 1
    for change in changes:
        assert change.key.startswith(part.replace('_weights', ' weights'))
        assert change.effect.startswith(effect) and change.refused == (effect == REFUSED)
        assert change.key in table(changes)


def leaves(node, path=()):
    """Paths of all values of a record that are no dict and no list, or are empty."""
    if isinstance(node, (dict, list)) and node:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*path, key))
    else:
        yield path


@pytest.fixture(scope='module')
def records(tmp_path_factory, repo_root):
    """Of the model of the paper, with DeepSpeed, and of a miniature with hooks."""
    found = []
    for name in ('pixelsail_0.5b', 'pixelsail_mini'):
        cfg = read_config(repo_root / f'configs/pixelsail/{name}.py')
        cfg.strategy = dict(config=read_preset('zero2'))
        more = dict(max_iters=9, processes=2, order=dict(seed=0), vocabulary=dict(vocabulary='x'))
        found.append(configured_settings(cfg) | more | dict(trained_weights=[['a'], ['b', 'c']]))
    return found


@given(data=st.data())
def test_whatever_changes_is_said(records, data):
    """A value anywhere in a real record; the key that is named is its own or one above."""
    saved = data.draw(st.sampled_from(records))
    path = data.draw(st.sampled_from(sorted(leaves(saved), key=str)))
    now = copy.deepcopy(saved)
    *above, last = path
    node = now
    for key in above:
        node = node[key]
    others = (
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0.1, 9) | st.text(max_size=60)
    )
    node[last] = data.draw(others.filter(lambda value: value != node[last]))
    if path[0] == 'max_iters':
        node[last] = data.draw(st.integers(0, 20).filter(lambda value: value != saved['max_iters']))
    (change,) = compare(saved, now, iteration=4)
    printed = table([change])
    if path[0] == 'trained_weights':
        assert change.refused
        return
    name = ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in path).lstrip('.')
    assert change.key == name and change.effect
    for value in (change.saved, change.now):
        assert value is None or str(value) in printed
