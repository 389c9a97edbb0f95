"""One device, or one model copy per process."""

from typing import Callable, Optional

from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.model import is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS

from pixelsail_mm.engine.checkpoint import apply_weights, load_state
from pixelsail_mm.engine.strategies.common import StrategyMixin, unwrap
from pixelsail_mm.registry import STRATEGIES


class _SafeResume(StrategyMixin):
    """MMEngine's resume, with a reader that runs no code and with no key left unfilled."""

    def load_checkpoint(self, filename: str, *, callback: Optional[Callable] = None,
                        **kwargs) -> dict:
        """Load a training checkpoint of this model.

        Args:
            filename: The ``.pth`` file.
            callback: Called with the checkpoint before its weights are used.
            **kwargs: Ignored: tensors are always read to the CPU, and every key is required.

        Returns:
            dict: The checkpoint without its weights.
        """
        checkpoint = load_state(filename)
        if callback is not None:
            callback(checkpoint)
        apply_weights(unwrap(self.model), checkpoint.pop('state_dict'), filename,
                      required_prefixes=[''])
        return checkpoint

    def model_state_dict(self) -> dict:
        """Give the weights on the CPU, under the same names with and without a wrapper."""
        return self.gathered_state_dict()


@STRATEGIES.register_module()
class PixelSingleDeviceStrategy(_SafeResume, SingleDeviceStrategy):
    """Train or test on the CPU or on one GPU; arguments: see :class:`StrategyMixin`."""


@STRATEGIES.register_module()
class PixelDDPStrategy(_SafeResume, DDPStrategy):
    """Data parallel over processes, on GPUs or CPUs; arguments: see :class:`StrategyMixin`."""

    def _wrap_model(self, model):
        import torch
        if torch.cuda.is_available() or is_model_wrapper(model):
            return super()._wrap_model(model)
        wrapper = self.model_wrapper or dict(type='MMDistributedDataParallel',
                                             broadcast_buffers=False)
        return MODEL_WRAPPERS.build(wrapper, default_args=dict(module=self.convert_model(model)))
