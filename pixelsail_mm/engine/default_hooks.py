"""Default hooks that a config turns off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import FlexibleRunner

# The hooks that MMEngine registers unasked; only for these it takes None.
_UNASKED = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


class HooksOffRunner(FlexibleRunner):
    """MMEngine's ``FlexibleRunner`` that takes None for every hook of ``default_hooks``.

    The config keeps the None, so a training from its copy in the work directory is without the
    hook, too.
    """

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
