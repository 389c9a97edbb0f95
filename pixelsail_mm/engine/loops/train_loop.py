"""The training loop: XTuner's, with reproducible steps and exact resume."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from pixelsail_mm.compat.xtuner import TrainLoop
from pixelsail_mm.datasets.mixing import DrawIndexSampler
from pixelsail_mm.engine.memory_report import explaining_memory
from pixelsail_mm.engine.process_ties import tie_workers
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import LOOPS

_STATE = 'data_order'


def seed_step(seed: int, micro_batch: int) -> None:
    """Make the randomness of one step a function of (seed, micro-batch) alone.

    Dropout and the mask head's point sampling then draw the same numbers after a resume, and in
    two processes the same as in one process that accumulates.

    Args:
        seed: The run's seed.
        micro_batch: Number of the micro-batch in the stream of all processes.
    """
    words = np.random.SeedSequence([seed, micro_batch]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


@LOOPS.register_module()
class PixelTrainLoop(TrainLoop):
    """XTuner's ``TrainLoop`` (``max_iters`` or ``max_epochs``) that continues where it stopped.

    ``IterBasedTrainLoop`` resumes by loading and dropping every batch seen so far; here the
    sampler starts at the first draw not yet consumed. The checkpoint's message hub holds what the
    order of samples depends on, and a run that would continue in another order is refused.

    Args:
        runner: The runner.
        dataloader: Data loader or its config; its sampler must be a ``DrawIndexSampler``.
        **kwargs: ``max_iters`` or ``max_epochs``, ``val_begin``, ``val_interval``, see MMEngine's
            ``IterBasedTrainLoop``.

    Raises:
        ConfigError: Another sampler, or a resumed run with another order of samples.
    """

    def __init__(self, runner, dataloader: DataLoader | dict, **kwargs):
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(dataloader, seed=runner.seed)
            tie_workers(dataloader)
        if not isinstance(dataloader.sampler, DrawIndexSampler):
            raise ConfigError(
                f'train_dataloader.sampler: {type(dataloader.sampler).__name__} cannot resume; '
                "use dict(type='DrawIndexSampler', sampler=dict(type='DefaultSampler', ...))"
            )
        super().__init__(runner=runner, dataloader=dataloader, **kwargs)

    def data_order(self) -> dict:
        """Give what the order of samples depends on, besides the sampler that orders an epoch."""
        sampler = self.dataloader.sampler
        return dict(
            samples_per_iter=sampler.draws_per_iter,
            seed=sampler.seed,
            dataset_length=len(self.dataloader.dataset),
        )

    def _seek(self) -> None:
        """Point the sampler at the first draw not consumed before the resume."""
        order, hub = self.data_order(), self.runner.message_hub
        before = hub.runtime_info.get(_STATE, order) if self._iter else order
        if before != order:
            changed = ', '.join(
                f'{key}: {before.get(key)} -> {value}'
                for key, value in order.items()
                if before.get(key) != value
            )
            raise ConfigError(
                f'cannot resume at iteration {self._iter}: the order of samples changed '
                f'({changed}); use the same batch size, number of processes, seed and data, or '
                'start a new run from the weights with --cfg-options load_from=CHECKPOINT'
            )
        hub.update_info(_STATE, order)
        if self._iter:
            self.dataloader.sampler.start_at(self._iter * order['samples_per_iter'])
            self.dataloader_iterator = iter(self.dataloader)

    def run(self):
        """Train to ``max_iters``.

        Returns:
            nn.Module: The model.
        """
        self._seek()
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            doing = f'in iteration {self._iter + 1} of the training'
            with explaining_memory(self.runner, 'train_dataloader', doing) as place:
                place.batch = next(self.dataloader_iterator)
                self.run_iter(place.batch)
            self._decide_current_val_interval()
            if self._validation_is_due():
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validation_is_due(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._iter >= self.val_begin
            and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
        )

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Train on one micro-batch with its own random numbers."""
        sampler = self.dataloader.sampler
        seed_step(sampler.seed, self._iter * sampler.world_size + sampler.rank)
        super().run_iter(data_batch)
