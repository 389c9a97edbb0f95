"""Validation and test over several (data loader, evaluator) pairs in one run."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner.amp import autocast
from mmengine.runner.loops import TestLoop, ValLoop

from pixelsail_mm.datasets.mixing import EvaluationBatchSampler
from pixelsail_mm.datasets.sample_source import Unreadable
from pixelsail_mm.datasets.templates import templates_version
from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.engine.loops.prediction_store import PredictionStore, checksum_of, fields_of
from pixelsail_mm.engine.loops.second_answer import answer_twice
from pixelsail_mm.engine.loops.train_loop import seed_step
from pixelsail_mm.engine.loops.unreadable import COUNT, listing, of_all_processes, sort_batches
from pixelsail_mm.engine.memory_report import explaining_memory
from pixelsail_mm.engine.preflight import check_sample_ids
from pixelsail_mm.engine.results import package_versions
from pixelsail_mm.engine.step_check import on_any_rank
from pixelsail_mm.engine.stop_signals import REQUEST
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import LOOPS

_NOUNS = dict(val='validation', test='test')
#: Settings of a data loader that do not change what it gives.
_ONLY_SPEED = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')


def _pairs(dataloader, evaluator, mode: str) -> list:
    """Pair data loaders with evaluators.

    One data loader may have a list of metrics, as everywhere in MMEngine; several need an evaluator
    each.
    """
    if not isinstance(dataloader, (list, tuple)):
        return [(dataloader, evaluator)]
    if not isinstance(evaluator, (list, tuple)) or len(evaluator) != len(dataloader):
        count = len(evaluator) if isinstance(evaluator, (list, tuple)) else 1
        raise ConfigError(
            f'{mode}_dataloader lists {len(dataloader)} data loaders, '
            f'{mode}_evaluator {count} evaluators: give one for each, in order'
        )
    return list(zip(dataloader, evaluator))


class _MultiLoop:
    """Shared by validation and test: run MMEngine's own loop once per pair, report together."""

    mode = ''
    part_class: type = ValLoop

    def __init__(
        self, runner, dataloader: dict | Sequence, evaluator: dict | Sequence, fp16: bool = False
    ):
        self._runner = runner
        self.parts: list[ValLoop | TestLoop] = [
            self.part_class(runner, dataloader=loader, evaluator=metrics, fp16=fp16)
            for loader, metrics in _pairs(dataloader, evaluator, self.mode)
        ]
        self._is_list = isinstance(dataloader, (list, tuple))
        for part in self.parts:
            sort_batches(part.dataloader)
        for index, part in enumerate(self.parts):
            check_sample_ids(part.dataloader.dataset, f'{self.mode}_dataloader[{index}].dataset')
        self._select(self.parts[0])

    def _select(self, part) -> None:
        """Show hooks and logs the data loader and evaluator now at work."""
        self.dataloader, self.evaluator = part.dataloader, part.evaluator

    def _is_left(self) -> bool:
        """Whether any process was asked to stop, so that none goes on to the metrics."""
        device = next(self._runner.model.parameters()).device
        return REQUEST.deferred and on_any_rank([REQUEST.signal is not None], device)[0]

    def run(self) -> dict:
        """Run every pair.

        Returns:
            dict: The metrics of all pairs; prefixes tell them apart. None of them if a training
            that validates was asked to stop.

        Raises:
            ConfigError: Two evaluators report a metric of the same name.
        """
        runner, metrics = self._runner, {}
        runner.call_hook(f'before_{self.mode}')
        for number, part in enumerate(self.parts):
            self._select(part)
            runner.call_hook(f'before_{self.mode}_epoch')
            runner.model.eval()
            key = f'{self.mode}_dataloader' + (f'.{number}' if self._is_list else '')
            with (
                runner.strategy.evaluation(),
                explaining_memory(runner, key, f'in the {_NOUNS[self.mode]}') as place,
            ):
                for index, (place.batch, unreadable) in enumerate(part.dataloader):
                    part.note_unreadable(unreadable)
                    if place.batch is not None:
                        part.run_iter(index, place.batch)
                    if REQUEST.signal is not None:
                        break
            if self._is_left():
                runner.logger.warning(f'{self.mode} is left without metrics: a signal said stop')
                return {}
            found = part.evaluate()
            twice = sorted(metrics.keys() & found.keys())
            if twice:
                raise ConfigError(
                    f'{self.mode}_evaluator: metric {twice[0]} is reported twice; '
                    "give the evaluators different prefixes (prefix='refcoco')"
                )
            metrics.update(found)
        runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        runner.call_hook(f'after_{self.mode}')
        return metrics


class _Part:
    """What validation and test on one data set share: predict a batch, score it, tell the hooks."""

    mode = ''

    def note_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        """Take notice of samples that were left out of a batch."""
        raise NotImplementedError

    def evaluate(self) -> dict:
        """Compute the metrics of the data set; all processes get them."""
        return self.evaluator.evaluate(len(self.dataloader.dataset))

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Predict a batch and score it.

        Args:
            idx: Number of the batch among those of this process.
            data_batch: The collated batch.
        """
        self.runner.call_hook(f'before_{self.mode}_iter', batch_idx=idx, data_batch=data_batch)
        outputs = self._outputs(idx, data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            f'after_{self.mode}_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )

    def _outputs(self, idx: int, data_batch: dict) -> list:
        """Samples of a batch with their predictions."""
        model = self.runner.model
        with autocast(enabled=self.fp16):
            return answer_twice(
                getattr(model, f'{self.mode}_step'),
                getattr(unwrap(model), 'tokenizer', None),
                data_batch,
            )


class _ValPart(_Part, ValLoop):
    """Validate on one data set; where samples cannot be read, no metric is reported as complete."""

    mode = 'val'

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._unreadable: list[Unreadable] = []

    def note_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        """Keep what was left out for the end of the data set."""
        self._unreadable += unreadable

    def evaluate(self) -> dict:
        """Compute the metrics; NaN for all, and how many are lacking, if not all could be read."""
        lacking, self._unreadable = of_all_processes(self._unreadable), []
        for metric in self.evaluator.metrics:
            metric.incomplete = bool(lacking)
        size = len(self.dataloader.dataset)
        found = super().evaluate() if len(lacking) < size else {}
        if not lacking:
            return found
        prefix = self.evaluator.metrics[0].prefix
        rest = ', '.join(f'{name} {value}' for name, value in found.items())
        self.runner.logger.error(
            f'validation at iteration {self.runner.iter}: {len(lacking)} of {size} samples'
            f'{f" of {prefix}" if prefix else ""} cannot be read, so its metrics are NaN'
            f'{f" (of the other samples: {rest})" if rest else ""}; the training goes on:\n'
            f'{listing(lacking)}'
        )
        count = {f'{prefix}/{COUNT}' if prefix else COUNT: len(lacking)}
        return dict.fromkeys(found, math.nan) | count


@LOOPS.register_module()
class MultiValLoop(_MultiLoop, ValLoop):
    """Validate on one or several datasets.

    A sample that cannot be read (``BadSampleError``) does not end the training: it is left out and
    named in the log, the metrics of its data set are NaN, and ``PREFIX/unreadable_samples`` says
    how many there are.

    Args:
        runner: The runner.
        dataloader: A data loader config, or a list of them.
        evaluator: An evaluator config (or list of metrics); for several data loaders a list with
            one entry each.
        fp16: Run under autocast.
    """

    mode = 'val'
    part_class = _ValPart


class _TestPart(_Part, TestLoop):
    """Test on one data set, in batches that do not depend on the number of processes."""

    mode = 'test'
    store: PredictionStore | None = None

    def note_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        """Stop: numbers of a test are of all samples.

        Raises:
            BadSampleError: There is one.
        """
        if not unreadable:
            return
        if self.store is not None:
            self.runner.logger.info(
                'the predictions made so far are kept: correct the data, and continue with --resume'
            )
        raise unreadable[0].error

    @property
    def batches(self) -> EvaluationBatchSampler | None:
        """The batch sampler, if it numbers the batches of all processes."""
        sampler = self.dataloader.batch_sampler
        return sampler if isinstance(sampler, EvaluationBatchSampler) else None

    def open_store(self, store: PredictionStore) -> None:
        """Write predictions to a store, and take them from it where all processes can.

        A process that took its batch from the store while another one predicts would not be there
        for the other's collective calls (sharded weights). So a round is taken only as a whole;
        every process knows all rounds and all that is stored.
        """
        store.open()
        self.store = store
        self._stored_rounds = [
            all(number in store for number in self.batches.round(index))
            for index in range(len(self.batches))
        ]

    @property
    def num_resumed(self) -> int:
        """Number of samples, of all processes, whose predictions are taken from the store."""
        taken = {
            number
            for index, stored in enumerate(self._stored_rounds)
            if stored
            for number in self.batches.round(index)
        }
        return sum(len(self.batches.batch(number)) for number in taken)

    def _outputs(self, idx: int, data_batch: dict) -> list:
        """Samples with predictions, which are taken from the store where it has them."""
        if self.batches is None:
            return super()._outputs(idx, data_batch)
        number = self.batches.round(idx)[self.batches.rank]
        if self.store is None:
            return self._predict(idx, number, data_batch)
        return self._predict_or_take(idx, number, data_batch)

    def _predict(self, idx: int, number: int, data_batch: dict) -> list:
        # For answers that are drawn instead of the likeliest.
        seed_step(self.runner.seed, number)
        return super()._outputs(idx, data_batch)

    def _predict_or_take(self, idx: int, number: int, data_batch: dict) -> list:
        samples = data_batch['data_samples']
        # Before prediction, which may change both.
        known = [fields_of(sample) for sample in samples]
        checksum = checksum_of(
            data_batch['inputs'], [sample.get('ori_shape') for sample in samples]
        )
        if self._stored_rounds[idx]:
            self.store.fill(number, checksum, samples)
            return samples
        outputs = self._predict(idx, number, data_batch)
        self.store.write(number, checksum, outputs, known)
        return outputs


@LOOPS.register_module()
class MultiTestLoop(_MultiLoop, TestLoop):
    """Test on one or several datasets.

    A sample that cannot be read (``BadSampleError``) ends the test.

    Args:
        runner: The runner.
        dataloader: See :class:`MultiValLoop`.
        evaluator: See :class:`MultiValLoop`.
        fp16: Run under autocast.
        predictions: ``dict(checkpoint=PATH, resume=False)`` writes the predictions of every test
            set into ``WORK_DIR/predictions/<number>_<prefix>`` as they are made, in place of older
            ones. ``resume=True`` takes what is there, and predicts only the rest; the metrics are
            those of an uninterrupted run. Needs data loaders with an
            :class:`~pixelsail_mm.datasets.mixing.EvaluationBatchSampler`.

    Raises:
        ConfigError: ``resume`` is set and a data loader has another batch sampler. In :meth:`run`,
            the stored predictions are of another checkpoint, other settings or other data.
    """

    mode = 'test'
    part_class = _TestPart

    def __init__(
        self,
        runner,
        dataloader: dict | Sequence,
        evaluator: dict | Sequence,
        fp16: bool = False,
        predictions: dict | None = None,
    ):
        super().__init__(runner, dataloader, evaluator, fp16=fp16)
        #: Known once predictions are written.
        self.checkpoint_sha256: str | None = None
        self._predictions = predictions
        self._loader_cfgs = dataloader if isinstance(dataloader, (list, tuple)) else [dataloader]
        if predictions is None or not predictions['resume']:
            return
        for index, part in enumerate(self.parts):
            if part.batches is None:
                raise ConfigError(
                    f'--resume: test_dataloader[{index}] cuts other batches for each number of '
                    "processes; give it batch_sampler=dict(type='EvaluationBatchSampler')"
                )

    def run(self) -> dict:
        """Run every pair, see :class:`MultiTestLoop`.

        Returns:
            dict: The metrics of all pairs.
        """
        if self._predictions is None:
            return super().run()
        common = self._common_settings()
        for index, part in enumerate(self.parts):
            if part.batches is not None:
                self._open_store(index, part, common)
        try:
            return super().run()
        finally:
            for part in self.parts:
                if part.store is not None:
                    part.store.close()

    def _common_settings(self) -> dict:
        """What the predictions of all test sets depend on."""
        # Hashing takes seconds per gigabyte, so one process does it for all.
        sha256 = [sha256_of(self._predictions['checkpoint']) if is_main_process() else None]
        broadcast_object_list(sha256)
        self.checkpoint_sha256 = sha256[0]
        return dict(
            checkpoint=dict(sha256=sha256[0]),
            model=self._runner.cfg.model,
            fp16=self.parts[0].fp16,
            seed=self._runner.seed,
            templates=templates_version(),
            versions=package_versions(),
        )

    def _open_store(self, index: int, part: _TestPart, common: dict) -> None:
        name = f'{index}_{part.evaluator.metrics[0].prefix or "test"}'
        loader = {
            key: value for key, value in self._loader_cfgs[index].items() if key not in _ONLY_SPEED
        }
        settings = dict(common, test_dataloader=loader, samples=len(part.dataloader.dataset))
        resume, folder = self._predictions['resume'], Path(self._runner.work_dir, 'predictions')
        part.open_store(PredictionStore(folder / name, settings, resume))
        if resume:
            self._runner.logger.info(
                f'{name}: resumed {part.num_resumed} of '
                f'{settings["samples"]} samples from {folder / name}'
            )
