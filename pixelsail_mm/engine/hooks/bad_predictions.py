"""Report NaN and infinity in predictions and metrics; an evaluation and a training go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from mmengine.dist import all_gather_object, is_main_process

from pixelsail_mm.errors import shortened
from pixelsail_mm.models.generation import STATES_NOT_FINITE

_NAMED = 5


def fields_not_finite(sample) -> list[str]:
    """Names of the predictions of a sample that hold NaN or infinity.

    Args:
        sample: A data sample: its ``pred_*`` fields, and what the model says about its states,
            since NaN in them gives masks and texts that look like any other.
    """
    found = [
        key
        for key, value in sample.items()
        if key.startswith('pred_')
        and (torch.is_tensor(value) or isinstance(value, float))
        and not bool(torch.isfinite(torch.as_tensor(value)).all())
    ]
    return found + [STATES_NOT_FINITE] * bool(sample.get(STATES_NOT_FINITE))


class BadPredictionsMixin:
    """Mixed into a hook: one line for each data set, one for metrics that are not finite."""

    _bad: Sequence[str] = ()

    def _note_predictions(self, outputs) -> None:
        for sample in outputs or ():
            fields = fields_not_finite(sample)
            if fields:
                name = f'{sample.get("dataset", "")}/{sample.get("sample_id", "without id")}'
                self._bad = [*self._bad, f'{name.lstrip("/")} ({", ".join(fields)})']

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Look at the predictions of a batch."""
        self._note_predictions(outputs)

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Look at the predictions of a batch."""
        self._note_predictions(outputs)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Report; the training goes on."""
        self._tell(runner, metrics, f'validation at iteration {runner.iter}')

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Report."""
        self._tell(runner, metrics, 'test')

    def _tell(self, runner, metrics: dict | None, what: str) -> None:
        bad = [name for found in all_gather_object(list(self._bad)) for name in found]
        self._bad = ()
        said = []
        if bad:
            said.append(f'predictions of {len(bad)} samples ({shortened(bad, _NAMED)})')
        said += [
            f'metric {name}'
            for name, value in (metrics or {}).items()
            if isinstance(value, Real) and not math.isfinite(value)
        ]
        if said and is_main_process():
            runner.logger.error(f'{what}: NaN or infinite: {", ".join(said)}')
