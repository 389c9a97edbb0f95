"""Change the weights of distillation losses during training."""

from collections.abc import Sequence

from mmengine.hooks import Hook

from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.registry import HOOKS

_KEYS = {'begin', 'until', 'start', 'end', 'channel_weights'}


@HOOKS.register_module()
class DistillScheduleHook(Hook):
    """Set the weight of the distillation losses, and of the expert's channels, by phases.

    A model that starts from nothing first needs an expert's features to see objects at all; later
    the same loss takes capacity from the tasks. What an expert shows most loudly is learned first,
    and what is quiet next to it is not learned at all (docs/learning_notes.md), so a later phase
    may stress other channels. Everything follows from the iteration alone: a resumed run continues
    with the same weights.

    Args:
        phases: In order of time, each a dict with shares of the training iterations ``begin``
            (default 0) and ``until``, between which the factor on every configured ``loss_weight``
            goes linearly from ``start`` (default 1) to ``end`` (default 0.05); it stays there until
            the next phase begins. ``channel_weights`` replaces those in force, first the
            loss's own (:class:`~pixelsail_mm.models.losses.expert_distill_loss.ExpertDistillLoss`);
            a phase without them keeps what is in force. Losses without ``set_channel_weights``
            have none; the log says so.

    Raises:
        ValueError: A phase has an unknown key, a negative factor, or does not end after it begins;
            the first does not begin at 0, or phases are out of order.
    """

    def __init__(self, phases: Sequence[dict]) -> None:
        self.phases = [
            dict(dict(begin=0.0, start=1.0, end=0.05, channel_weights=None), **phase)
            for phase in phases
        ]
        for phase in self.phases:
            unknown = set(phase) - _KEYS
            if unknown or 'until' not in phase:
                raise ValueError(
                    f'DistillScheduleHook: a phase takes the keys {sorted(_KEYS)} and '
                    f'needs `until`, got {sorted(phase)}'
                )
            if min(phase['start'], phase['end']) < 0 or not (
                0 <= phase['begin'] < phase['until'] <= 1
            ):
                raise ValueError(
                    'DistillScheduleHook: a phase needs 0 <= begin < until <= 1 and '
                    f'factors that are not negative, got {phase}'
                )
        begins = [phase['begin'] for phase in self.phases]
        if begins[:1] != [0.0] or begins != sorted(set(begins)):
            raise ValueError(
                'DistillScheduleHook: phases begin at 0 and follow each other in '
                f'time, got begin={begins}'
            )
        self._weights: list[float] = []
        self._phase: dict | None = None

    def phase(self, progress: float) -> dict:
        """Phase in force when a share ``progress`` of the iterations is done."""
        return [phase for phase in self.phases if phase['begin'] <= progress][-1]

    def channel_weights(self, progress: float) -> Sequence[float] | None:
        """Last channel weights that a phase set by then; None if none has yet."""
        found = [phase['channel_weights'] for phase in self.phases if phase['begin'] <= progress]
        return next((weights for weights in reversed(found) if weights is not None), None)

    def factor(self, progress: float) -> float:
        """Factor when a share ``progress`` of the iterations is done."""
        phase = self.phase(progress)
        done = (progress - phase['begin']) / (phase['until'] - phase['begin'])
        return phase['start'] + (phase['end'] - phase['start']) * min(1.0, done)

    def before_train(self, runner) -> None:
        """Remember the configured weights."""
        self._weights = [loss.loss_weight for loss in self._losses(runner)]
        if self.channel_weights(1.0) is not None:
            for loss in self._losses(runner):
                if not hasattr(loss, 'set_channel_weights'):
                    runner.logger.info(
                        f'DistillScheduleHook: {loss.name} '
                        f'({type(loss).__name__}) has no channel weights; only its '
                        'loss_weight follows the phases'
                    )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weights of this iteration."""
        progress = runner.iter / runner.max_iters
        phase, factor = self.phase(progress), self.factor(progress)
        channels = self.channel_weights(progress)
        for loss, weight in zip(self._losses(runner), self._weights):
            loss.loss_weight = weight * factor
            if (
                phase is not self._phase
                and channels is not None
                and hasattr(loss, 'set_channel_weights')
            ):
                loss.set_channel_weights(channels)
        self._phase = phase

    @staticmethod
    def _losses(runner) -> list:
        return list(getattr(unwrap(runner.model), 'distill', ()))
