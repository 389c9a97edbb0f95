"""Settings of a training: recorded in checkpoints, compared on resume."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pixelsail_mm.checkpoints.loading.vocabulary import Vocabulary
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.errors import shortened
from pixelsail_mm.setting_differences import differences

#: Key of the record in a checkpoint's ``meta``: JSON text, which anyone can read and nothing runs.
RECORD = 'training_settings'
# Hooks of `default_hooks` that show and write; they change nothing that is trained.
_ONLY_WRITE = (
    'timer',
    'mean_log_vars',
    'throughput',
    'logger',
    'checkpoint',
    'export_weights',
    'skipped_samples',
    'stop',
    'watchdog',
    'visualization',
)
# Settings of the data loader that change no batch.
_HOW_LOADED = (
    'num_workers',
    'pin_memory',
    'pin_memory_device',
    'persistent_workers',
    'prefetch_factor',
    'timeout',
    'multiprocessing_context',
)
# Settings of DeepSpeed that repeat others, or only print.
_REPEATED = (
    'train_batch_size',
    'train_micro_batch_size_per_gpu',
    'gradient_accumulation_steps',
    'steps_per_print',
)
# Settings of an optimizer that its state does not depend on.
_FREE = (
    'lr',
    'weight_decay',
    'betas',
    'eps',
    'momentum',
    'dampening',
    'nesterov',
    'maximize',
    'fused',
    'foreach',
    'capturable',
)
_WIDTH = 48
# What happens to a change: how a refusal begins; what sets optimizer and schedules anew.
_REFUSED = 'refused: '
_APPLIED, _BY_NOW = 'applied from here on', 'applied: continues where it would be by now'
_RECUT = 'applied: weights and optimizer state are cut anew'


def training_settings(runner) -> dict[str, Any]:
    """Collect what a training depends on, as plain values.

    Left out are settings that only say how to run it: workers, intervals of logs and checkpoints,
    validation, folders.

    Args:
        runner: A runner whose loop is built and whose strategy is prepared.
    """
    tokenizer = getattr(unwrap(runner.model), 'tokenizer', None)
    return configured_settings(runner.cfg) | _plain(
        dict(
            max_iters=runner.max_iters,
            processes=runner.world_size,
            order=getattr(runner.train_loop, 'data_order', dict)(),
            trained_weights=runner.strategy.trained_weights,
            vocabulary=tokenizer and Vocabulary.of_tokenizer(tokenizer).metadata(),
        )
    )


def configured_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Collect those of them that a config says, as plain values.

    Args:
        cfg: A training's config.
    """
    strategy = (cfg.get('strategy') or {}).get('config')
    loader = _without(cfg['train_dataloader'], _HOW_LOADED)
    # Its batch size repeats the loader's.
    loader['sampler'] = _without(loader.get('sampler') or {}, ('batch_size',))
    return _plain(
        dict(
            optim_wrapper=cfg['optim_wrapper'],
            param_scheduler=cfg.get('param_scheduler') or [],
            auto_scale_lr=cfg.get('auto_scale_lr'),
            deepspeed=None if strategy is None else _without(strategy, _REPEATED),
            randomness=_without(cfg.get('randomness') or {}, ('seed',)),
            train_dataloader=loader,
            model=cfg['model'],
            custom_hooks=cfg.get('custom_hooks') or [],
            default_hooks=_without(cfg.get('default_hooks') or {}, _ONLY_WRITE),
        )
    )


def _without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(to_text(settings))


def to_text(settings: Mapping[str, Any]) -> str:
    """Write settings as JSON; classes and functions by their names."""
    return json.dumps(settings, default=_name_of)


def _name_of(value: Any) -> str:
    """Text for what JSON does not know, the same in every process."""
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    text = str(value)
    return type(value).__qualname__ if ' at 0x' in text else text


@dataclass
class Change:
    """One setting that is not the one saved.

    Attributes:
        key: Its name in the config.
        saved: Value in the checkpoint's record.
        now: Value of this run.
        effect: What happens.
    """

    key: str
    saved: Any
    now: Any
    effect: str = 'used from here on'

    @property
    def refused(self) -> bool:
        """Whether the run cannot go on with it."""
        return self.effect.startswith(_REFUSED)

    @property
    def schedules(self) -> bool:
        """Whether optimizer settings and schedules must be set anew for it."""
        return self.effect in (_APPLIED, _BY_NOW, _RECUT)


class _Place(NamedTuple):
    """Where the training continues, in the terms of this run."""

    iteration: int
    max_iters: int
    accumulation: int
    deepspeed: bool

    @property
    def fault(self) -> str | None:
        """Why it cannot continue here: a checkpoint holds no gradients of a part of a window."""
        if self.iteration >= self.max_iters or self.iteration % self.accumulation == 0:
            return None
        return (
            f'its iteration {self.iteration} is not a multiple of {self.accumulation} '
            '(accumulative_counts); take a checkpoint that is'
        )


def place_of(now: Mapping[str, Any], iteration: int) -> _Place:
    """Describe where a run of these settings continues after ``iteration`` iterations."""
    return _Place(
        iteration,
        now.get('max_iters', iteration),
        (now.get('optim_wrapper') or {}).get('accumulative_counts', 1),
        now.get('deepspeed') is not None,
    )


def compare(saved: Mapping[str, Any], now: Mapping[str, Any], iteration: int) -> list[Change]:
    """Find the settings of a run, resumed at ``iteration``, that are not those saved."""
    place = place_of(now, iteration)
    changes = [
        Change(*found)
        for part in sorted(saved.keys() | now.keys())
        if part != 'trained_weights'
        for found in differences(saved.get(part), now.get(part), part)
    ]
    groups = [part.get('trained_weights') for part in (saved, now)]
    if groups[0] != groups[1]:
        changes.append(_other_groups(*groups))
    for change in changes:
        for pattern, effect in _RULES:
            if re.match(pattern, change.key):
                change.effect = effect if isinstance(effect, str) else effect(change, place)
                break
    return changes


def _other_groups(saved: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> Change:
    """Say how the weights that the optimizer knows differ."""
    names = [{name for group in groups for name in group} for groups in (saved, now)]
    only = [sorted(names[0] - names[1]), sorted(names[1] - names[0])]
    how = '; '.join(
        f'{title}: {shortened(group, 2)}'
        for title, group in zip(('only saved', 'only now'), only)
        if group
    )
    counts = (f'{sum(map(len, groups))} in {len(groups)} groups' for groups in (saved, now))
    return Change(
        'trained weights',
        *counts,
        f'{_REFUSED}{how or "grouped otherwise"}, the optimizer has no state for that',
    )


def _of_max_iters(change: Change, place: _Place) -> str:
    if place.max_iters < place.iteration:
        return f'{_REFUSED}the checkpoint is at iteration {place.iteration}'
    return _of_accumulation(change, place)


def _of_accumulation(change: Change, place: _Place) -> str:
    return f'{_REFUSED}{place.fault}' if place.fault else _BY_NOW


def _of_loss_scale(change: Change, place: _Place) -> str:
    """The scaler's state is saved; a fixed scale of mixed precision replaces it after a step."""
    if change.key == 'optim_wrapper.loss_scale' and isinstance(change.now, (int, float)):
        return 'applied after one step'
    return 'not used: the loss scale of the checkpoint goes on, if it has one'


def _of_stage(change: Change, place: _Place) -> str:
    if {change.saved, change.now} == {1, 2}:  # both cut the same vectors in the same way
        return _APPLIED
    if change.saved in (1, 2, 3) and change.now in (1, 2, 3):
        return _RECUT
    return f'{_REFUSED}the optimizer state is not kept in the same way'


def _of_processes(change: Change, place: _Place) -> str:
    if place.deepspeed:
        return _RECUT
    return change.effect


def _of_vocabulary(change: Change, place: _Place) -> str:
    if change.saved is None:  # a record of an earlier version
        return 'not compared: the checkpoint does not say it'
    return f'{_REFUSED}the rows of the embeddings belong to other tokens'


def _of_hooks(change: Change, place: _Place) -> str:
    """MMEngine's ``EMAHook`` saves the averages as the weights, and those trained elsewhere."""
    if 'EMAHook' in str(change.saved) and 'EMAHook' not in str(change.now):
        return f'{_REFUSED}with EMAHook the weights in the checkpoint are averages, not the trained'
    return change.effect


_ORDER = f'{_REFUSED}the order of samples would be another'
# What happens, or what says it; the first that fits a key counts. Without one, the value is used.
_RULES: list[tuple[str, str | Callable[[Change, _Place], str]]] = [
    (r'order\.', _ORDER),
    (r'train_dataloader\.(batch_)?sampler|train_dataloader\.drop_last', _ORDER),
    (r'vocabulary\b', _of_vocabulary),
    (r'custom_hooks|default_hooks', _of_hooks),
    (r'optim_wrapper\.optimizer\.type$', f'{_REFUSED}it keeps another state'),
    (rf'optim_wrapper\.optimizer\.({"|".join(_FREE)})\b', _APPLIED),
    (r'optim_wrapper\.optimizer\b', f'{_REFUSED}the optimizer state depends on it'),
    (r'optim_wrapper\.accumulative_counts$', _of_accumulation),
    (r'optim_wrapper\.loss_scale\b', _of_loss_scale),
    (r'deepspeed\.fp16\.(?!enabled)', _of_loss_scale),
    (r'optim_wrapper\b|auto_scale_lr|deepspeed\.gradient_clipping', _APPLIED),
    (r'param_scheduler', _BY_NOW),
    (r'max_iters$', _of_max_iters),
    (r'deepspeed\.zero_optimization\.stage$', _of_stage),
    (r'processes$', _of_processes),
]


def table(changes: Sequence[Change]) -> str:
    """Lay changes out in four columns: setting, saved, now, what happens.

    Values that are too long for a column follow in full.
    """
    rows = [('setting', 'saved', 'now', 'what happens')]
    ordered = sorted(changes, key=lambda change: not change.refused)
    rows += [
        (change.key, _short(change.saved), _short(change.now), change.effect) for change in ordered
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        '  '.join([cell.ljust(width) for cell, width in zip(row, widths)] + [row[3]])
        for row in rows
    ]
    for change in ordered:
        if max(len(_text(change.saved)), len(_text(change.now))) > _WIDTH:
            lines += [
                f'{change.key} in full:',
                f'  saved  {_text(change.saved)}',
                f'  now    {_text(change.now)}',
            ]
    return '\n'.join(lines)


def _text(value: Any) -> str:
    return '-' if value is None else str(value)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + '...'
