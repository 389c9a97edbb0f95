"""DeepSpeed ZeRO stages 1 to 3, on GPUs with NCCL and on CPUs with gloo."""

import contextlib
import functools
import json
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from mmengine._strategy import DeepSpeedStrategy
from mmengine._strategy import deepspeed as mmengine_deepspeed
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from torch import Tensor, nn

from pixelsail_mm.checkpoints.checkpoint import loading_fault, weights_only_loading
from pixelsail_mm.checkpoints.formats.safetensors_files import map_once
from pixelsail_mm.checkpoints.formats.zero_optimizer import ZeroLayout, read_layout
from pixelsail_mm.compat.onebit import ensure_onebit_optimizers
from pixelsail_mm.compat.xtuner import deepspeed_preset
from pixelsail_mm.engine.checkpoint_writer import CheckpointSave
from pixelsail_mm.engine.strategies.common import StrategyMixin
from pixelsail_mm.engine.strategies.zero_recut import load_recut
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import STRATEGIES

PRESETS = ('zero1', 'zero2', 'zero3', 'zero2_offload', 'zero3_offload')


def read_preset(name: str | Path) -> dict:
    """Read a DeepSpeed configuration.

    Args:
        name: ``zero1``, ``zero2``, ``zero3``, ``zero2_offload``, ``zero3_offload`` (XTuner's
            presets, ``deepspeed_zero2`` is accepted too) or the path of a JSON file.

    Raises:
        ConfigError: Neither a preset nor a readable JSON file.
    """
    short = str(name).removeprefix('deepspeed_')
    if short in PRESETS:
        path = deepspeed_preset(short)
    else:
        path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f'--deepspeed {name}: neither a preset ({", ".join(PRESETS)}) nor a JSON file'
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f'--deepspeed {path}: not valid JSON ({error})') from error


def adapt(config: dict, micro_batch: int, accumulation: int, max_norm: float) -> dict:
    """Fill what a preset leaves open, for the device at hand.

    Args:
        config: A DeepSpeed configuration, perhaps with ``"auto"`` values.
        micro_batch: Samples per process and micro-batch.
        accumulation: Micro-batches per optimizer step.
        max_norm: Gradient norm to clip at; 0 for no clipping.

    Returns:
        dict: bfloat16 on a GPU unless the file turns fp16 on, float32 on the CPU. There are no
        streams on a CPU: communication is not overlapped, and weights are gathered one by one.
    """
    config = dict(
        config,
        train_micro_batch_size_per_gpu=micro_batch,
        gradient_accumulation_steps=accumulation,
        gradient_clipping=max_norm,
    )
    zero = dict(config.get('zero_optimization', {}))
    half = config.get('fp16', {}).get('enabled') is True
    if torch.cuda.is_available():
        config['bf16'] = dict(enabled=not half)
    else:
        half = False
        config['bf16'] = dict(enabled=False)
        zero['overlap_comm'] = False
        # Without it DeepSpeed waits for the last of several gathers only. In a CUDA stream the
        # others have ended by then; gloo's threads may still be writing weights that are in use.
        zero['stage3_allgather_sequential'] = True
    if not half:
        config['fp16'] = dict(enabled=False)
    config['zero_optimization'] = zero
    return config


def ensure_rank_variables() -> None:
    """Make a run without a launcher a group of one process, which DeepSpeed needs."""
    if 'RANK' in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )


def skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling a C++ all-reduce that training does not use.

    On a CPU its communication backend builds the op at start: minutes of waiting the first time,
    and a crash where there is no compiler. Marking the op incompatible leaves it out.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False


def _hook_tables(modules: Iterable[nn.Module]) -> list[dict]:
    return [
        table for module in modules for table in (module._forward_pre_hooks, module._forward_hooks)
    ]


def register_optimizers_once() -> None:
    """Let a process build a second DeepSpeed strategy.

    MMEngine registers DeepSpeed's optimizers with each, and its registry refuses a name twice.
    """
    register = mmengine_deepspeed.register_deepspeed_optimizers
    if not hasattr(register, 'cache_info'):
        mmengine_deepspeed.register_deepspeed_optimizers = functools.cache(register)


@contextlib.contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Take the forward hooks off all modules inside the block."""
    tables = _hook_tables(model.modules())
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept):
            table.update(hooks)


@contextlib.contextmanager
def unhooked_bare_modules(model: nn.Module) -> Iterator[None]:
    """Take off the hooks that DeepSpeed puts inside on modules without parameters and buffers.

    ZeRO-3 records every call of a hooked module and insists on the same calls in all processes,
    although only modules with parameters communicate. A loss module is called once per image with
    masks, hence a different number of times in a process whose batch is text only.
    """
    bare = [
        module
        for module in model.modules()
        if not any(True for _ in (*module.parameters(), *module.buffers()))
    ]
    tables = _hook_tables(bare)
    before = [set(table) for table in tables]
    yield
    for table, kept in zip(tables, before):
        for key in set(table) - kept:
            del table[key]


@contextlib.contextmanager
def joined_lists(model: nn.Module) -> Iterator[None]:
    """Make the hooks that DeepSpeed puts inside on modules see one tensor instead of a list.

    ZeRO-3 records one backward call for each tensor that a module returns. A neck returns a list
    with one feature map per image, hence another number in a process with more images: that ends in
    an error, or in processes that wait for each other for ever. Outside nothing changes: hooks that
    were there before see the list, and so does the caller.

    Args:
        model: The model; its own output is left alone.
    """
    shapes: dict[nn.Module, list] = {
        module: []
        for module in model.modules()
        if module is not model and any(True for _ in module.parameters())
    }

    def join(module, inputs, output):
        if isinstance(output, list) and output and all(map(torch.is_tensor, output)):
            shapes[module].append([tensor.shape for tensor in output])
            return torch.cat([tensor.flatten() for tensor in output])

    def split(module, inputs, output):
        if shapes[module]:
            sizes = shapes[module].pop()
            parts = output.split([size.numel() for size in sizes])
            return [part.view(size) for part, size in zip(parts, sizes)]

    for module in shapes:
        module.register_forward_hook(join)
    yield
    for module in shapes:
        module.register_forward_hook(split)


@STRATEGIES.register_module()
class PixelDeepSpeedStrategy(StrategyMixin, DeepSpeedStrategy):
    """MMEngine's DeepSpeed strategy that also runs on CPUs and reads its checkpoints safely.

    Args:
        **kwargs: ``config`` (see :func:`read_preset` and :func:`adapt`), the arguments of
            :class:`StrategyMixin` and of MMEngine's ``DeepSpeedStrategy``.
    """

    _state_bytes = 12  # the float32 weight, too

    def __init__(self, **kwargs):
        ensure_onebit_optimizers()
        register_optimizers_once()
        super().__init__(**kwargs)

    def _parse_config(self, config) -> dict:
        # DeepSpeed stores it in checkpoints, which must hold plain containers only.
        config = super()._parse_config(config)
        return config.to_dict() if isinstance(config, ConfigDict) else config

    def prepare(self, model, **kwargs):
        """Wrap model and optimizer; see MMEngine's ``DeepSpeedStrategy.prepare``."""
        prepared = super().prepare(model, **kwargs)
        if hasattr(self, 'optim_wrapper'):
            self.optim_wrapper.initialize_count_status(0, self.dispatch_kwargs['max_iters'])
        return prepared

    def _wrap_model(self, model: nn.Module):
        if not torch.cuda.is_available():
            skip_shared_memory_op()
        with joined_lists(model), unhooked_bare_modules(model):
            wrapped = super()._wrap_model(model)
        self._use_our_files(wrapped.model)
        # ZeRO-3 leaves its buffers behind; bfloat16 would round the pixel mean by a grey level.
        if hasattr(model, 'data_preprocessor'):
            model.data_preprocessor.to(get_device()).float()
        return wrapped

    def _use_our_files(self, engine) -> None:
        """Let DeepSpeed hand its files over instead of writing them, each in its own way."""
        from pixelsail_mm.engine.strategies.checkpoint_engine import SaveEngine

        writer = self.config.get('checkpoint', {}).get('writer')
        if writer or self.config.get('nebula', {}).get('enabled'):
            self.logger.warning(
                '--deepspeed: its settings `checkpoint.writer` and `nebula` are not used; '
                'default_hooks.checkpoint.async_save writes checkpoints in the background'
            )
        engine.checkpoint_engine = self._files = SaveEngine()
        copy_script = engine._copy_recovery_script

        def copy_or_note(folder: str) -> None:
            with self._files.target.noting_errors():
                copy_script(folder)

        engine._copy_recovery_script = copy_or_note

    def _add_files(
        self,
        save: CheckpointSave,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,  # MMEngine does not call it with DeepSpeed either
    ) -> int:
        extra_ckpt = self._meta(extra_ckpt)
        if save_optimizer:
            self._files.target = save
            DeepSpeedStrategy.save_checkpoint(
                self,
                save.unfinished,
                save_param_scheduler=save_param_scheduler,
                extra_ckpt=extra_ckpt,
            )
            return get_world_size()
        state = dict(
            state_dict=self.gathered_state_dict(),
            **extra_ckpt,
            **self._schedules(save_param_scheduler),
        )
        if is_main_process():
            save.add(state, save.unfinished)
        return 1

    def resume(self, filename: str, **kwargs) -> dict:
        """Resume from a checkpoint folder, perhaps of other processes or another ZeRO stage.

        Args:
            filename: The folder ``iter_N.pth``.
            **kwargs: As in MMEngine.

        Returns:
            dict: ``meta``, ``message_hub``.

        Raises:
            CheckpointError: Not such a folder, or incomplete.
        """
        if not Path(filename).is_dir():
            raise CheckpointError(
                filename,
                'not a DeepSpeed checkpoint folder',
                'it was saved without --deepspeed: resume without it, or take only its weights '
                'with --cfg-options load_from=CHECKPOINT',
            )
        try:
            # In this order: the types that a block trusts are forgotten when one inside it ends.
            with self._loading_recut(Path(filename)), weights_only_loading(deepspeed=True):
                checkpoint = super().resume(filename, **kwargs)
        except (
            RuntimeError,
            EOFError,
            OSError,
            KeyError,
            TypeError,
            AssertionError,
            pickle.UnpicklingError,
        ) as error:
            raise CheckpointError(
                filename,
                f'cannot be resumed here ({loading_fault(error)})',
                'use the config it was saved with, or an earlier checkpoint',
            ) from error
        # ZeRO-1 and 2 take the norm to clip at from the checkpoint; it is a setting of the config.
        if hasattr(self.model.optimizer, 'clip_grad'):
            self.model.optimizer.clip_grad = self.config['gradient_clipping']
        # They also take from it whether its last step was skipped, and where nothing looks for bad
        # steps they would go on to skip every step.
        if hasattr(self.model.optimizer, 'overflow'):
            self.model.optimizer.overflow = False
        self.optim_wrapper.initialize_count_status(
            checkpoint['meta']['iter'], self.dispatch_kwargs['max_iters']
        )
        return checkpoint

    @contextlib.contextmanager
    def _loading_recut(self, folder: Path) -> Iterator[None]:
        """Where a folder is cut otherwise, let the engine read it part by part."""
        saved = read_layout(folder)
        now = ZeroLayout(self.model.zero_optimization_stage(), get_world_size())
        if saved.fits(now):
            yield
            return
        self.logger.warning(
            f'{folder} was written by {saved.processes} processes with ZeRO stage {saved.stage}: '
            f'cutting it anew for {now.processes} with stage {now.stage}'
        )
        self.model.load_checkpoint = lambda *args, **kwargs: load_recut(self.model.model, folder)
        try:
            yield
        finally:
            del self.model.load_checkpoint

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Keep the whole model on each process inside the block.

        With ZeRO-3 each module's weights come together for its call, in all processes at once.
        Answers have different lengths, so one process would wait for calls another never makes.
        """
        if not self.model.zero_optimization_partition_weights():
            yield
            return
        import deepspeed

        module = self.model.module
        with deepspeed.zero.GatheredParameters(list(module.parameters())), without_hooks(module):
            yield

    def gathered_state_dict(self) -> dict[str, Tensor]:
        """Give the whole model's weights on the CPU; with ZeRO-3 the ranks' parts are gathered."""
        if self.model.zero_optimization_partition_weights():
            state = self.model._zero3_consolidated_16bit_state_dict() or {}
        else:
            state = self.model.module_state_dict()
        return map_once(state, Tensor.cpu)
