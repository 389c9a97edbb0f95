"""Batches of an evaluation that are the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class EvaluationBatchSampler(Sampler):
    """Cut a data set into consecutive batches and deal them out to the processes.

    Batch ``b`` holds samples ``b * batch_size`` up to ``(b + 1) * batch_size``, however many
    processes there are: what a sample is padded to, and with it every rounding of its answer, does
    not depend on their number. In round ``k`` process ``r`` of ``W`` gets batch ``k W + r``, or,
    where the batches have come to an end, an earlier one again: with sharded weights all processes
    must call the model equally often. The metrics drop what is repeated.

    Equal batches give bit-equal predictions if the rest is equal as well: kind of device, precision
    and, on a CPU, the number of threads. ``tools/dist_test.sh`` shares the cores out among the
    processes; set ``OMP_NUM_THREADS`` to compare with a run of another number of processes.

    Args:
        sampler: The data loader's sampler, of which only the data set is used; it must not shuffle.
        batch_size: Samples per batch.

    Raises:
        ConfigError: The sampler shuffles, or does not know its data set.
    """

    def __init__(self, sampler: Sampler, batch_size: int) -> None:
        if getattr(sampler, 'shuffle', False) or not hasattr(sampler, 'dataset'):
            raise ConfigError(
                'batch_sampler EvaluationBatchSampler: needs beside it '
                "sampler=dict(type='DefaultSampler', shuffle=False), got a "
                f'{type(sampler).__name__} that shuffles or has no data set'
            )
        self.rank, self.world_size = get_dist_info()
        self.batch_size = batch_size
        self._length = len(sampler.dataset)

    @property
    def num_batches(self) -> int:
        """Number of different batches, of all processes together."""
        return -(-self._length // self.batch_size)

    def batch(self, number: int) -> range:
        """Indices of the samples of a batch."""
        return range(number * self.batch_size, min((number + 1) * self.batch_size, self._length))

    def round(self, index: int) -> list[int]:
        """Numbers of the batches that the processes get in a round, in order of their ranks."""
        start = index * self.world_size
        return [number % self.num_batches for number in range(start, start + self.world_size)]

    @property
    def numbers(self) -> list[int]:
        """Numbers of the batches of this process, round by round."""
        return [self.round(index)[self.rank] for index in range(len(self))]

    @property
    def num_samples(self) -> int:
        """Samples of this process."""
        return sum(len(self.batch(number)) for number in self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of this process's batches."""
        return (list(self.batch(number)) for number in self.numbers)

    def __len__(self) -> int:
        """Number of rounds, which is that of the batches of each process."""
        return -(-self.num_batches // self.world_size)
