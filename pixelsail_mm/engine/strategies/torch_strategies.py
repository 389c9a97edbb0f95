"""One device, or one model copy per process."""

from collections.abc import Callable

import torch
from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from pixelsail_mm.checkpoints.checkpoint import apply_weights, load_state
from pixelsail_mm.engine.checkpoint_writer import CheckpointSave
from pixelsail_mm.engine.strategies.common import StrategyMixin, unwrap
from pixelsail_mm.errors import CheckpointError, shortened
from pixelsail_mm.registry import STRATEGIES


class _TorchStrategy(StrategyMixin):
    """Resume with a reader that runs no code; weights that train are in float32."""

    def prepare(self, model: nn.Module | dict, **kwargs):
        """Build and wrap model and optimizer; see MMEngine's ``BaseStrategy.prepare``."""
        self._trains = kwargs.get('optim_wrapper') is not None
        return super().prepare(model, **kwargs)

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        model = super()._init_model_weights(model)
        if self._trains:
            _train_in_float32(model)
        return model

    def load_checkpoint(self, filename: str, *, callback: Callable | None = None, **kwargs) -> dict:
        """Load a training checkpoint of this model.

        Args:
            filename: The ``.pth`` file.
            callback: Called with the checkpoint before its weights are used.
            **kwargs: Ignored: tensors are always read to the CPU, and every key is required.

        Returns:
            dict: The checkpoint without its weights.

        Raises:
            CheckpointError: A weight has no place in the model, or the model has one more.
        """
        checkpoint = load_state(filename)
        if callback is not None:
            callback(checkpoint)
        report = apply_weights(
            unwrap(self.model), checkpoint.pop('state_dict'), filename, required_prefixes=['']
        )
        if report.unexpected:
            raise CheckpointError(
                filename,
                f'{len(report.unexpected)} of its weights have no place in the model '
                f'({shortened(report.unexpected, 5)})',
                'resume with the model settings it was saved with, or start a new training from '
                'it with --cfg-options load_from=CHECKPOINT',
            )
        return checkpoint

    def _add_files(
        self,
        save: CheckpointSave,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> int:
        if not is_main_process():
            return 1
        state = dict(state_dict=unwrap(self.model).state_dict())
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            state['optimizer'] = self.optim_state_dict()
        state.update(self._schedules(save_param_scheduler), **self._meta(extra_ckpt))
        if callback is not None:
            callback(state)
        save.add(state, save.unfinished)
        return 1

    def model_state_dict(self) -> dict:
        """Give the weights on the CPU, under the same names with and without a wrapper."""
        return self.gathered_state_dict()


def _train_in_float32(model: nn.Module) -> None:
    """Keep what trains in float32, as autocast expects; frozen weights stay as they are.

    A step of 4e-5 on a weight of 0.02 is less than half the distance of two bfloat16 numbers there
    and would be rounded away. DeepSpeed keeps float32 copies of its own.
    """
    short = [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.dtype in (torch.float16, torch.bfloat16)
    ]
    for weight in short:
        weight.data = weight.data.float()
    if short:
        print_log(
            f'{len(short)} half-precision weights that train are kept in float32 (their '
            'small steps would be rounded away)',
            logger='current',
        )


@STRATEGIES.register_module()
class PixelSingleDeviceStrategy(_TorchStrategy, SingleDeviceStrategy):
    """Train or test on the CPU or on one GPU; arguments: see :class:`StrategyMixin`."""


@STRATEGIES.register_module()
class PixelDDPStrategy(_TorchStrategy, DDPStrategy):
    """Data parallel over processes, on GPUs or CPUs; arguments: see :class:`StrategyMixin`."""

    def _wrap_model(self, model):
        if torch.cuda.is_available() or is_model_wrapper(model):
            return super()._wrap_model(model)
        wrapper = self.model_wrapper or dict(
            type='MMDistributedDataParallel', broadcast_buffers=False
        )
        return MODEL_WRAPPERS.build(wrapper, default_args=dict(module=self.convert_model(model)))
