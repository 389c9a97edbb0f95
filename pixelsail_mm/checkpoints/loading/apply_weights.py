"""Putting stored weights into a model, and refusing those that are not for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul

import torch
from torch import Tensor, nn

from pixelsail_mm.checkpoints.formats.zero_checkpoint import CHUNK, ZeroTensor
from pixelsail_mm.checkpoints.loading.architecture import unlike_sizes
from pixelsail_mm.checkpoints.loading.load_report import LoadReport
from pixelsail_mm.checkpoints.loading.vocabulary import (
    Vocabulary,
    VocabularyError,
    plan_rows,
    vocabulary_tables,
)
from pixelsail_mm.errors import CheckpointError, shortened

#: Modules that only training uses; a checkpoint without them is complete for prediction.
TRAINING_ONLY_PREFIXES = ('distill.',)
#: Trained parts that only a model of the same settings has a place for -> marks in their names.
_SEPARATE = {
    'LoRA layers': ('.lora_',),
    'separate rows of new tokens': ('.new_rows',),
    '4-bit weights': ('.weight.absmax', '.weight.quant_', '.weight.nested_'),
}
_MERGE = 'merge it first, with the config it was trained with: tools/model_converters/merge_lora.py'
State = dict[str, 'Tensor | ZeroTensor']


def apply_weights(
    model: nn.Module,
    state: Mapping[str, Tensor | ZeroTensor],
    source: str,
    required_prefixes: Sequence[str] | None = None,
    vocabulary: Vocabulary | None = None,
    by_token: bool = False,
) -> LoadReport:
    """Put a state dict into a model; see :func:`~pixelsail_mm.checkpoints.checkpoint.load_weights`.

    Args:
        model: The model.
        state: Name -> weight; a leading ``module.`` is dropped.
        source: Name of the origin, for messages.
        required_prefixes: As in ``load_weights``.
        vocabulary: Tokens of the checkpoint, None if unknown.
        by_token: Bring rows of vocabulary tables together by token; otherwise tables of another
            length are refused, as resuming wants it.

    Raises:
        CheckpointError: The weights are not for this model, which stays as it was.
    """
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    own = model.state_dict(keep_vars=True)
    report = LoadReport(source=str(source))
    separate = _separate_parts(state, own, report.source)
    if by_token:
        state = _by_token(model, state, own, vocabulary, report)
    for name, module in model.named_modules():
        if hasattr(module, 'adapt_state'):
            state = module.adapt_state(state, f'{name}.' if name else '')
    usable = _match(state, own, report)
    _check(report, required_prefixes, state, own, separate)
    _check_ties(usable, own, str(source))
    _copy(model, usable, own)
    return report


def _by_token(
    model: nn.Module, state: State, own: State, stored: Vocabulary | None, report: LoadReport
) -> State:
    """Replace vocabulary tables whose rows lie otherwise by tables in the model's order."""
    tables = vocabulary_tables(model)
    keys = [
        key
        for key in own
        if id(own[key]) in tables and key in state and state[key].shape[1:] == own[key].shape[1:]
    ]
    if not keys:
        return state
    state, vocabulary = dict(state), Vocabulary.of_tokenizer(model.tokenizer)
    for key in keys:
        value, target = state[key], own[key]
        try:
            plan = plan_rows(stored, len(value), vocabulary, len(target))
        except VocabularyError as error:
            raise CheckpointError(report.source, f'{key}: {error.reason}', error.remedy) from error
        if plan is None:
            continue
        if f'{key.rpartition(".")[0]}.new_rows' in state:
            raise CheckpointError(
                report.source,
                f'{key}: its separate rows are of other tokens than the model has',
                _MERGE,
            )
        table = target.detach().clone()
        rows = value[torch.tensor(plan.source, dtype=torch.long)]
        table[torch.tensor(plan.target, device=table.device)] = rows.to(table)
        report.resized.append((key, tuple(value.shape), tuple(target.shape), plan.summary))
        state[key] = table
    return state


def _match(state: State, own: State, report: LoadReport) -> State:
    """Sort keys into the report; return the usable weights."""
    usable: State = {}
    for key, value in state.items():
        if key not in own:
            report.unexpected.append(key)
            continue
        old, new = tuple(value.shape), tuple(own[key].shape)
        if old == new:
            usable[key] = value
        elif _same_order(old, new):
            report.reshaped.append((key, old, new))
            usable[key] = value if isinstance(value, ZeroTensor) else value.reshape(new)
        else:
            report.mismatched.append((key, old, new))
    bad = {key for key, _, _ in report.mismatched}
    filled = {id(own[key]) for key in usable}  # one tensor for all names of tied weights
    for key in own:
        if id(own[key]) in filled:
            report.loaded.append(key)
        elif key not in bad:
            report.missing.append(key)
    return usable


def _same_order(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether one shape is the other with neighbouring dimensions joined.

    Equal sizes alone say nothing: (16, 32) read as (32, 16) would be a matrix of shuffled values.
    """
    ends = [{1, *accumulate(shape, mul)} for shape in (old, new)]
    return prod(old) == prod(new) and (ends[0] <= ends[1] or ends[1] <= ends[0])


def _holds(keys: Iterable[str], kind: str) -> list[str]:
    """Those of some names that belong to separate parts of a kind."""
    return [key for key in keys if any(mark in key for mark in _SEPARATE[kind])]


def _separate_parts(state: State, own: State, source: str) -> list[str]:
    """Kinds of separate parts that a checkpoint holds; the model must have them, too."""
    kinds = [kind for kind in _SEPARATE if _holds(state, kind)]
    for kind in kinds:
        if not _holds(own, kind):
            raise CheckpointError(source, f'holds {kind}, which the model has not', _MERGE)
    return kinds


def _check_separate_parts(report: LoadReport, kinds: Sequence[str]) -> None:
    """Refuse adapters of other settings, even if nothing is required: what they learned is lost."""
    unlike = {key: f'has shape {old}, not {new}' for key, old, new in report.mismatched}
    unlike |= dict.fromkeys(report.missing, 'is missing')
    unlike |= dict.fromkeys(report.unexpected, 'is not in the model')
    for kind in kinds:
        for key in _holds(unlike, kind):
            raise CheckpointError(
                report.source,
                f'its {kind} are not those of the model (e.g. {key} {unlike[key]})',
                f'use the model.backbone it was trained with, or {_MERGE}',
            )


def _check(
    report: LoadReport,
    required_prefixes: Sequence[str] | None,
    state: State,
    own: State,
    separate: Sequence[str],
) -> None:
    """Refuse another architecture, adapters of other settings, and gaps in what the task uses."""
    needed = _needed(required_prefixes)
    unlike = ''
    if not any(required_prefixes or ()):  # all of it, not some of its parts
        unlike = unlike_sizes(
            {key: value.shape for key, value in state.items()},
            {key: value.shape for key, value in own.items()},
        )
    if unlike:
        raise CheckpointError(
            report.source,
            f'is of another architecture: {unlike}',
            'use the config this checkpoint was trained with',
        )
    _check_separate_parts(report, separate)
    sizes = [
        f'{key} (file {old}, model {new})' for key, old, new in report.mismatched if needed(key)
    ]
    if sizes:
        raise CheckpointError(
            report.source,
            f'{len(sizes)} tensors have other sizes than the model, e.g. {sizes[0]}',
            'use the config this checkpoint was trained with (widths, layers, tokenizer)',
        )
    if not report.loaded and own:
        raise CheckpointError(
            report.source,
            f'no key matches any of the {len(own)} of the model; it has '
            f'{shortened(list(state), 3) or "none at all"}',
            _origin_of(state),
        )
    missing = [key for key in report.missing if needed(key)]
    if missing:
        raise CheckpointError(
            report.source,
            f'{len(missing)} weights that this task uses are missing: '
            f'{shortened(missing, 5)}{_whole_modules(missing, own)}',
            'use the config of this checkpoint, or a checkpoint that has these modules'
            + _hint(missing, separate),
        )


def _needed(required_prefixes: Sequence[str] | None) -> Callable[[str], bool]:
    if required_prefixes is None:
        return lambda key: not key.startswith(TRAINING_ONLY_PREFIXES)
    return lambda key: key.startswith(tuple(required_prefixes))


def _whole_modules(missing: list[str], own: State) -> str:
    """Name the modules of which nothing is there."""
    there, lost = (Counter(key.split('.')[0] for key in keys) for keys in (own, missing))
    whole = [module for module, count in lost.items() if count == there[module]]
    return f' (nothing of {", ".join(whole)} is in it)' if whole else ''


def _hint(missing: list[str], separate: Sequence[str]) -> str:
    if _holds(missing, 'LoRA layers') and not separate:
        return (
            '; it has no LoRA layers: test it with --cfg-options model.backbone.lora=None '
            'model.backbone.quantization=None, or start a training from it with load_from'
        )
    if any(key.endswith('lm_head.weight') for key in missing):
        return (
            '; if its output head is its embedding, set tie_word_embeddings=True in '
            'model.backbone.llm'
        )
    return ''


def _origin_of(state: State) -> str:
    """Guess what a file without one familiar name is, and what to do with it."""
    if any(key.startswith('model.layers.') for key in state):
        return 'a plain language model goes into the config, as model.backbone.llm'
    return 'an official release goes through tools/model_converters/official_to_mm.py first'


def _check_ties(usable: State, own: State, source: str) -> None:
    """Refuse two different tensors for one tied weight: the last one copied would win."""
    groups: dict[int, list[str]] = {}
    for key in usable:
        groups.setdefault(id(own[key]), []).append(key)
    for first, *others in groups.values():
        for other in others:
            if not _same(usable[first], usable[other]):
                raise CheckpointError(
                    source,
                    f'{first} and {other} differ, but the model has one weight for both',
                    'set tie_word_embeddings=False in model.backbone.llm',
                )
            del usable[other]


def _same(first: Tensor | ZeroTensor, second: Tensor | ZeroTensor) -> bool:
    """Whether two stored weights are one or have the same values; reads a few rows at a time."""
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.data_ptr() == second.data_ptr() or torch.equal(first, second)
    rows = max(1, CHUNK * len(first) // max(1, first.numel()))
    return all(
        torch.equal(first[start : start + rows], second[start : start + rows])
        for start in range(0, len(first), rows)
    )


@torch.no_grad()
def _copy(model: nn.Module, usable: State, own: State) -> None:
    """Fill the model. Pieces go straight to their place, everything else PyTorch's own way.

    Modules whose state is more than parameters and buffers (4-bit layers) hook into that way.
    """
    plain = {id(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    whole = {}
    for key, value in usable.items():
        if isinstance(value, ZeroTensor):
            if id(own[key]) in plain and own[key].is_contiguous():
                value.copy_to(own[key])
                continue
            value = value.read().view(own[key].shape)
        whole[key] = value
    model.load_state_dict(whole, strict=False)
