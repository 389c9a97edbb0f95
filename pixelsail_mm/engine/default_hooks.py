"""Runner whose default hooks a config turns off, and that reports where memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import FlexibleRunner

from pixelsail_mm.engine.memory_report import explaining_memory

# The hooks that MMEngine registers unasked; only for these it takes None.
_UNASKED = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


class HooksOffRunner(FlexibleRunner):
    """MMEngine's ``FlexibleRunner`` that takes None for every hook of ``default_hooks``.

    The config keeps the None, so a training from its copy in the work directory is without the
    hook, too. Where memory runs out, in a step or before the first, the run ends with a
    :class:`~pixelsail_mm.errors.MemoryShortageError`.
    """

    def train(self):
        """Train; give the model."""
        with explaining_memory(self, 'train_dataloader', 'in the training'):
            return super().train()

    def test(self) -> dict:
        """Test; give the metrics."""
        with explaining_memory(self, 'test_dataloader', 'in the test'):
            return super().test()

    def register_default_hooks(self, hooks: Mapping[str, Any] | None = None) -> None:
        """Register MMEngine's default hooks and those of the config.

        Args:
            hooks: Name -> hook or its config; None leaves a hook out.
        """
        super().register_default_hooks(
            {
                name: hook
                for name, hook in (hooks or {}).items()
                if hook is not None or name in _UNASKED
            }
        )
