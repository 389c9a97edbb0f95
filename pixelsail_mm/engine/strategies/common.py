"""Base of the strategies: process groups on CPU, safe weights, schedules in optimizer steps."""

import datetime
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import mmengine
import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from pixelsail_mm.checkpoints.checkpoint import load_weights
from pixelsail_mm.checkpoints.formats.safetensors_files import map_once
from pixelsail_mm.engine import watchdog
from pixelsail_mm.engine.checkpoint_writer import WRITE_LIMIT, CheckpointSave, SaveResult
from pixelsail_mm.engine.optim_wrappers import accumulation_of
from pixelsail_mm.engine.step_check import all_finite, on_any_rank
from pixelsail_mm.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    NotSavedError,
    first_line,
    shortened,
)
from pixelsail_mm.type_names import type_name

_RANK_VARIABLES = dict(
    slurm=dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    mpi=dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
)


def rank_of(launcher: str) -> int:
    """Number of this process, before the processes have joined each other.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun), ``slurm`` or ``mpi``.
    """
    if launcher == 'none':
        return 0
    return int(os.environ.get(_RANK_VARIABLES.get(launcher, {}).get('RANK', 'RANK'), 0))


def init_gloo(launcher: str, timeout: int | None = None) -> None:
    """Start a gloo process group on a machine without CUDA.

    MMEngine's ``init_dist`` calls ``torch.cuda.set_device`` whatever the backend.

    Args:
        launcher: ``pytorch`` (torchrun), ``slurm`` or ``mpi``; the last two need ``MASTER_ADDR``
            (default this machine) and ``MASTER_PORT`` (default 29500).
        timeout: Seconds a collective may take.
    """
    for name, source in _RANK_VARIABLES.get(launcher, {}).items():
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    limit = datetime.timedelta(seconds=timeout) if timeout else None
    dist.init_process_group('gloo', timeout=limit)


def unwrap(model: nn.Module) -> nn.Module:
    """Give the model inside a data-parallel wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def _steps(value: int | float, total: int) -> int | float:
    """Turn a float (a share of the training) into optimizer steps."""
    return round(value * total) if isinstance(value, float) and not math.isinf(value) else value


class StrategyMixin:
    """Mixed into MMEngine's strategies before their own class.

    Args:
        weights: Checkpoint whose weights the model starts from, loaded before the model is wrapped
            (and, with ZeRO-3, cut up).
        required_prefixes: Keys that ``weights`` must hold, see
            :func:`pixelsail_mm.checkpoints.checkpoint.load_weights`.
        **kwargs: Arguments of the strategy.
    """

    #: Bytes of optimizer state for a trained weight.
    _state_bytes = 8

    def __init__(
        self,
        *,
        weights: str | None = None,
        required_prefixes: Sequence[str] | None = None,
        **kwargs,
    ):
        self._weights, self._required_prefixes = weights, required_prefixes
        self.save_in_flight: CheckpointSave | None = None
        super().__init__(**kwargs)

    def _setup_distributed(self, launcher: str, backend: str = 'nccl', **kwargs) -> None:
        """Use NCCL where there is CUDA (or what ``dist_cfg`` says), gloo elsewhere."""
        try:
            if torch.cuda.is_available():
                super()._setup_distributed(launcher, backend=backend, **kwargs)
            elif not dist.is_initialized():
                init_gloo(launcher, timeout=kwargs.get('timeout'))
        except dist.DistError as error:
            address = f'{os.environ.get("MASTER_ADDR")}:{os.environ.get("MASTER_PORT")}'
            raise ConfigError(
                f'the processes cannot join each other at {address} (MASTER_ADDR, MASTER_PORT): '
                f'{first_line(error)}; another program may use the port, perhaps an earlier run '
                'that has not ended: end it, or set another MASTER_PORT'
            ) from error

    def forget_weights(self) -> None:
        """Do not load ``weights``: the checkpoint that is resumed has its own."""
        self._weights = None

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        model = super()._init_model_weights(model)
        if self._weights is not None:
            report = load_weights(model, self._weights, self._required_prefixes)
            self.logger.info(report.table())
        return model

    def build_optim_wrapper(self, optim_wrapper, model: nn.Module | None = None):
        """Build the optimizer as MMEngine does, and note which weights it trains.

        ``trained_weights`` holds their names, group by group: DeepSpeed's optimizer, which
        replaces it, has flat vectors without names.
        """
        built = super().build_optim_wrapper(optim_wrapper, model)
        names = {id(weight): name for name, weight in unwrap(model).named_parameters()}
        self.trained_weights: list[list[str]] = [
            [names[id(weight)] for weight in group['params'] if weight.requires_grad]
            for group in built.optimizer.param_groups
        ]
        return built

    def build_param_scheduler(self, scheduler, optim_wrapper, default_args=None) -> list:
        """Build schedules that count optimizer steps, not micro-batches.

        So one config gives one learning-rate curve, whether gradients accumulate over time or over
        processes. ``begin``, ``end`` and ``T_max`` of a ``by_epoch=False`` schedule may be floats:
        shares of the whole training. A warm-up shorter than two steps is left out (MMEngine's
        would leave the learning rate at its start value).

        Args:
            scheduler: Config, or list of configs or schedulers.
            optim_wrapper: The optimizer wrapper.
            default_args: ``max_iters`` and ``epoch_length`` in micro-batches, ``max_epochs``.
        """
        limits = dict(
            default_args
            or {
                key: self.dispatch_kwargs[key]
                for key in ('epoch_length', 'max_epochs', 'max_iters')
            }
        )
        accumulation = accumulation_of(optim_wrapper)
        for key in ('epoch_length', 'max_iters'):
            limits[key] = math.ceil(limits[key] / accumulation)
        scheduler = list(scheduler) if isinstance(scheduler, (list, tuple)) else [scheduler]
        return super().build_param_scheduler(
            self._in_steps(scheduler, limits['max_iters']), optim_wrapper, limits
        )

    @staticmethod
    def _in_steps(schedulers: list[dict | object], total: int) -> list:
        built = []
        for cfg in schedulers:
            if isinstance(cfg, dict) and not cfg.get('by_epoch', True):
                cfg = {
                    key: _steps(value, total) if key in ('begin', 'end', 'T_max') else value
                    for key, value in cfg.items()
                }
                short = cfg.get('end', total) - cfg.get('begin', 0) < 2
                if short and type_name(cfg['type']) == 'LinearLR':
                    continue
            built.append(cfg)
        return built

    @watchdog.stage('save')
    def save_checkpoint(
        self,
        filename: str,
        *,
        background: bool = False,
        published: Callable[[], None] | None = None,
        **kwargs,
    ) -> None:
        """Write a checkpoint beside its final name and rename it when it is complete.

        Args:
            filename: Final path.
            background: Return as soon as the state is copied;
                :meth:`settle_checkpoint` tells when and whether it was written.
            published: Called by process 0 when the checkpoint has its name, perhaps in a thread.
            **kwargs: As in MMEngine's strategies.

        Raises:
            NotSavedError: It could not be written (not in the background).
        """
        self.save_in_flight = CheckpointSave(filename, background)
        processes = self._add_files(self.save_in_flight, **kwargs)
        self.save_in_flight.start(processes, published)
        if not background:
            result = self.settle_checkpoint()
            if result.fault:
                raise NotSavedError(result.fault)

    @watchdog.stage('save')
    def settle_checkpoint(self, limit: float = WRITE_LIMIT) -> SaveResult | None:
        """Wait for the checkpoint that is being written; all processes must call this.

        Args:
            limit: Seconds to wait.

        Returns:
            SaveResult | None: What became of it; None if there is none.
        """
        save, self.save_in_flight = self.save_in_flight, None
        return None if save is None else save.settle(limit)

    def _add_files(self, save: CheckpointSave, **kwargs) -> int:
        """Add this process's files to a checkpoint; tell how many processes have some."""
        raise NotImplementedError

    def _schedules(self, wanted: bool) -> dict:
        """State of the schedules for a checkpoint; empty if not wanted or if there are none."""
        if not wanted or not hasattr(self, 'param_schedulers'):
            return {}
        return dict(param_schedulers=self.scheduler_state_dict())

    def _meta(self, extra_ckpt: dict | None) -> dict:
        """Complete what a runner puts beside the weights."""
        meta = dict(
            (extra_ckpt or {}).get('meta') or {},
            seed=self.seed,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine=mmengine.__version__,
        )
        return dict(extra_ckpt or {}, meta=meta)

    def bytes_to_save(self, optimizer: bool = True) -> int:
        """Estimate the size of a checkpoint over all processes.

        Args:
            optimizer: With the optimizer's state: two values per trained weight, as Adam keeps.
        """
        size = 0
        for weight in unwrap(self.model).parameters():
            numel = getattr(weight, 'ds_numel', weight.numel())
            size += numel * weight.element_size()
            size += numel * (self._state_bytes if optimizer and weight.requires_grad else 0)
        return size

    def bad_weights(self) -> list[str]:
        """Name the weights that are NaN or infinite in any process; every rank must call this.

        Of the buffers only those that checkpoints hold count, and only if they are NaN: infinity
        may be meant, as in a mask of attention. With ZeRO-3 each process looks at its part.
        """
        model = unwrap(self.model)
        bad = [
            name
            for name, weight in model.named_parameters()
            if not all_finite([getattr(weight, 'ds_tensor', weight)])
        ]
        saved = model.state_dict().keys()
        bad += [
            name
            for name, buffer in model.named_buffers()
            if name in saved and bool(torch.isnan(buffer).any())
        ]
        device = next(model.parameters()).device
        if not on_any_rank([bool(bad)], device)[0]:
            return []
        return list(dict.fromkeys(name for names in all_gather_object(bad) for name in names))

    def require_finite_weights(self, path: str) -> None:
        """Stop the training in all processes if its weights are not fit to be written.

        Raises:
            DivergedError: A weight is NaN or infinite.
        """
        bad = self.bad_weights()
        if bad:
            raise DivergedError(
                f'{path} is not written: {len(bad)} weights are NaN or infinite '
                f'({shortened(bad, 5)}). What was saved before is left as it is; lower the '
                'learning rate and continue with --resume'
            )

    def resume(self, filename: str, **kwargs) -> dict:
        """Resume from a checkpoint whose weights are finite.

        Returns:
            dict: ``meta``, ``message_hub``.

        Raises:
            CheckpointError: A weight in it is NaN or infinite.
        """
        checkpoint = super().resume(filename, **kwargs)
        bad = self.bad_weights()
        if bad:
            raise CheckpointError(
                filename,
                f'{len(bad)} of its weights are NaN or infinite ({shortened(bad, 5)})',
                'delete it and resume from an earlier checkpoint (--resume PATH)',
            )
        return checkpoint

    def evaluation(self) -> AbstractContextManager:
        """Give the context in which to validate; data parallel copies need none."""
        return nullcontext()

    def gathered_state_dict(self) -> dict[str, Tensor]:
        """Give the whole model's weights on the CPU; every rank must call this.

        Returns:
            dict: Name -> Tensor; complete on rank 0 (maybe empty elsewhere).
        """
        return map_once(unwrap(self.model).state_dict(), Tensor.cpu)
