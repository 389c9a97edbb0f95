"""Figures of the training log: losses over all processes, speed, memory."""

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook

from pixelsail_mm.engine.memory_report import peak_resident
from pixelsail_mm.registry import HOOKS


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Average each figure over the processes that have it.

    A process whose batch is text only may have no mask loss, so keys may differ.
    """
    if get_world_size() == 1:
        return values
    everyone = all_gather_object(values)
    keys = [key for found in everyone for key in found]
    return {
        key: sum(found[key] for found in everyone if key in found)
        / sum(key in found for found in everyone)
        for key in dict.fromkeys(keys)
    }


def count_tokens(data_batch: dict) -> int:
    """Count the tokens of a collated batch (padding not included).

    Args:
        data_batch: ``data_batch['inputs']['input_ids']`` is a list of (L,) tensors.
    """
    return sum(len(ids) for ids in data_batch['inputs']['input_ids'])


@HOOKS.register_module()
class MeanLogVarsHook(Hook):
    """Replace the losses that are logged by their means over all processes.

    Runs before ``RuntimeInfoHook``, which writes them to the message hub. The mean over an
    accumulation window is the log processor's: its ``window_size`` is at least that long.
    """

    priority = 5

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Average the log variables in place."""
        if outputs:
            values = {
                key: value.detach().item() if torch.is_tensor(value) else float(value)
                for key, value in outputs.items()
            }
            outputs.clear()
            outputs.update(mean_over_ranks(values))


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Log tokens per second of all processes and, without CUDA, the memory of this process.

    XTuner's hook of this name needs a language model's config on the model and takes the first
    tensor of the batch for the token ids; here a batch also holds images.
    """

    priority = 55  # after IterTimerHook (50), before LoggerHook (60)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Record ``tokens_per_sec`` and ``memory`` (peak resident size, MB)."""
        hub = runner.message_hub
        seconds = hub.get_scalar('train/time').current()
        tokens = count_tokens(data_batch) * get_world_size()
        hub.update_scalar('train/tokens_per_sec', tokens / max(seconds, 1e-9))
        if not torch.cuda.is_available():
            hub.update_scalar('train/memory', peak_resident() // 2**20)
