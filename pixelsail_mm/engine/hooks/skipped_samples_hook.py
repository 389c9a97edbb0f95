"""Log the samples that were skipped or changed while reading."""

from collections import Counter
from collections.abc import Iterable

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook

from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class SkippedSamplesHook(Hook):
    """Report how many samples were skipped, and how many read otherwise, per reason.

    The dataset counts broken samples in ``dataset.skipped``, and in ``dataset.noted`` what it
    reads otherwise than it stands in the files, such as a rotation that it ignores. With worker
    processes these counters must be shared with them.

    Args:
        interval: Iterations between reports during training; a report is only made when the
            counts changed.
    """

    def __init__(self, interval: int = 100):
        self.interval = interval
        self._reported: Counter = Counter()

    @classmethod
    def _count(cls, runner) -> Counter:
        return cls._gather([runner.train_dataloader], 'skipped')

    @classmethod
    def _report_noted(cls, runner, loaders: Iterable) -> None:
        noted = cls._gather(loaders, 'noted')
        if noted:
            runner.logger.warning(f'read otherwise than in the files: {cls._format(noted)}')

    @staticmethod
    def _gather(loaders: Iterable, name: str) -> Counter:
        """Sum of a counter of the datasets, over all processes."""
        mine = sum((Counter(getattr(loader.dataset, name, {})) for loader in loaders), Counter())
        return sum(all_gather_object(mine), Counter())

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Warn when further samples were skipped."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        counts = self._count(runner)
        if counts != self._reported:
            runner.logger.warning(f'skipped samples so far: {self._format(counts)}')
            self._reported = counts

    def after_train(self, runner) -> None:
        """Print the final counts."""
        counts = self._count(runner)
        runner.logger.info(f'skipped samples: {self._format(counts) if counts else "none"}')
        self._report_noted(runner, [runner.train_dataloader])

    def after_test(self, runner) -> None:
        """Log what was changed while reading the test data."""
        loop = runner.test_loop
        self._report_noted(runner, [part.dataloader for part in getattr(loop, 'parts', [loop])])

    @staticmethod
    def _format(counts: Counter) -> str:
        reasons = '; '.join(f'{number} x {reason}' for reason, number in counts.most_common(20))
        return f'{sum(counts.values())} ({reasons})'
