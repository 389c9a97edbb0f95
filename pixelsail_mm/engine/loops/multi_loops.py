"""Validation and test over several (data loader, evaluator) pairs in one run."""

from typing import List, Sequence, Union

from mmengine.runner.loops import TestLoop, ValLoop

from pixelsail_mm.engine.errors import ConfigError
from pixelsail_mm.registry import LOOPS


def _pairs(dataloader, evaluator, mode: str) -> list:
    """Pair data loaders with evaluators.

    One data loader may have a list of metrics, as everywhere in MMEngine; several need an evaluator
    each.
    """
    if not isinstance(dataloader, (list, tuple)):
        return [(dataloader, evaluator)]
    if not isinstance(evaluator, (list, tuple)) or len(evaluator) != len(dataloader):
        count = len(evaluator) if isinstance(evaluator, (list, tuple)) else 1
        raise ConfigError(f'{mode}_dataloader lists {len(dataloader)} data loaders, '
                          f'{mode}_evaluator {count} evaluators: give one for each, in order')
    return list(zip(dataloader, evaluator))


class _MultiLoop:
    """Shared by validation and test: run MMEngine's own loop once per pair, report together."""

    mode = ''
    part_class: type = ValLoop

    def __init__(self, runner, dataloader: Union[dict, Sequence], evaluator: Union[dict, Sequence],
                 fp16: bool = False):
        self._runner = runner
        self.parts: List[Union[ValLoop, TestLoop]] = [
            self.part_class(runner, dataloader=loader, evaluator=metrics, fp16=fp16)
            for loader, metrics in _pairs(dataloader, evaluator, self.mode)]
        self._select(self.parts[0])

    def _select(self, part) -> None:
        """Show hooks and logs the data loader and evaluator now at work."""
        self.dataloader, self.evaluator = part.dataloader, part.evaluator

    def run(self) -> dict:
        """Run every pair.

        Returns:
            dict: The metrics of all pairs; prefixes tell them apart.

        Raises:
            ConfigError: Two evaluators report a metric of the same name.
        """
        runner, metrics = self._runner, {}
        runner.call_hook(f'before_{self.mode}')
        for part in self.parts:
            self._select(part)
            runner.call_hook(f'before_{self.mode}_epoch')
            runner.model.eval()
            with runner.strategy.evaluation():
                for index, batch in enumerate(part.dataloader):
                    part.run_iter(index, batch)
            found = part.evaluator.evaluate(len(part.dataloader.dataset))
            twice = sorted(metrics.keys() & found.keys())
            if twice:
                raise ConfigError(f'{self.mode}_evaluator: metric {twice[0]} is reported twice; '
                                  "give the evaluators different prefixes (prefix='refcoco')")
            metrics.update(found)
        runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        runner.call_hook(f'after_{self.mode}')
        return metrics


@LOOPS.register_module()
class MultiValLoop(_MultiLoop, ValLoop):
    """Validate on one or several datasets.

    Args:
        runner: The runner.
        dataloader: A data loader config, or a list of them.
        evaluator: An evaluator config (or list of metrics); for several data loaders a list with
            one entry each.
        fp16: Run under autocast.
    """

    mode = 'val'
    part_class = ValLoop


@LOOPS.register_module()
class MultiTestLoop(_MultiLoop, TestLoop):
    """Test on one or several datasets; the arguments are those of :class:`MultiValLoop`."""

    mode = 'test'
    part_class = TestLoop
