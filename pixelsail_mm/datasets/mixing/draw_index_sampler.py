"""One endless, resumable order of samples for any number of processes."""

import math
from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from pixelsail_mm.registry import DATA_SAMPLERS
from pixelsail_mm.type_names import type_name

_GLOBAL_VIEW = ('rank', 'world_size', 'num_samples', 'total_size')


def _build_order(cfg: dict, dataset: Sized, seed: int) -> Sampler:
    """Build the wrapped sampler and make it yield the order of all processes together."""
    cfg = dict(cfg)
    if type_name(cfg.get('type')) == 'LengthGroupedSampler':
        from pixelsail_mm.compat.xtuner import LengthGroupedSampler  # an optional part

        cfg['type'] = LengthGroupedSampler
    sampler = DATA_SAMPLERS.build(cfg, default_args=dict(dataset=dataset, seed=seed))
    if not all(hasattr(sampler, name) for name in _GLOBAL_VIEW):
        raise TypeError(
            f'sampler {type(sampler).__name__} cannot be resumed: it needs the attributes '
            f'{", ".join(_GLOBAL_VIEW)}, as DefaultSampler and LengthGroupedSampler have'
        )
    sampler.rank, sampler.world_size = 0, 1
    sampler.num_samples = sampler.total_size = len(dataset)
    return sampler


@DATA_SAMPLERS.register_module()
class DrawIndexSampler(Sampler):
    """Number every draw of the training, whatever the number of processes, and start anywhere.

    The orders of all epochs, each given by the wrapped sampler, follow one another without end.
    Draw ``d`` of this stream is item ``order(d // N)[d % N]`` and is yielded as the draw index
    ``(d // N) * N + item``, from which the dataset derives both the item and all randomness of the
    sample. The stream is cut into micro-batches; iteration ``t`` of rank ``r`` gets micro-batch
    ``t * world_size + r``. So two processes see in one iteration what one process sees in two
    iterations of gradient accumulation, no sample is padded or dropped, and resuming is a matter
    of starting at another draw: nothing is loaded only to be skipped.

    Args:
        dataset: The dataset; only its length (and, for LengthGroupedSampler, its lengths) is used.
        sampler: Config of the sampler that orders one epoch.
        batch_size: Samples per micro-batch and process, as in the data loader.
        seed: Seed of the orders, the same on all ranks. None: drawn, then shared among the ranks.

    Raises:
        ValueError: The dataset is empty.
        TypeError: The wrapped sampler cannot give the order of all processes.
    """

    def __init__(
        self,
        dataset: Sized,
        sampler: dict | None = None,
        batch_size: int = 1,
        seed: int | None = None,
    ):
        if len(dataset) == 0:
            raise ValueError(
                f'the training dataset {type(dataset).__name__} is empty: '
                'check its annotation file and filters'
            )
        self.rank, self.world_size = get_dist_info()
        self.batch_size = batch_size
        self.seed = sync_random_seed() if seed is None else seed
        self._length = len(dataset)
        self._order = _build_order(
            sampler or dict(type='DefaultSampler', shuffle=True), dataset, self.seed
        )
        self._offset = 0

    @property
    def draws_per_iter(self) -> int:
        """Samples that all processes together consume in one iteration."""
        return self.batch_size * self.world_size

    def start_at(self, draw: int) -> None:
        """Make the next iterator start at a draw.

        Args:
            draw: Samples consumed so far by all processes together.
        """
        self._offset = draw

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's draw indices, without end."""
        start = self._offset + self.rank * self.batch_size
        epoch, order = -1, []
        while True:
            for draw in range(start, start + self.batch_size):
                if draw // self._length != epoch:
                    epoch = draw // self._length
                    self._order.set_epoch(epoch)
                    order = list(self._order)
                yield epoch * self._length + order[draw % self._length]
            start += self.draws_per_iter

    def __len__(self) -> int:
        """Samples per rank of one epoch, rounded up to whole iterations."""
        return math.ceil(self._length / self.draws_per_iter) * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream runs through the epochs by itself."""
