"""Rewrite a checkpoint file under other weight names, bit for bit."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Callable, Mapping

from torch import Tensor

from pixelsail_mm.engine.checkpoint import load_state
from pixelsail_mm.engine.checkpoint_files import replace_when_complete


def convert_checkpoint(source: str | os.PathLike, target: str | os.PathLike,
                       rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> str:
    """Convert ``source`` to ``target``.

    The target appears only when it is complete; an existing file stays until then.

    Args:
        source: Anything :func:`~pixelsail_mm.engine.checkpoint.load_state` reads.
        target: ``.safetensors``, or ``.pth`` for a pickled ``dict(state_dict=...)``.
        rename: State dict -> state dict.

    Returns:
        Table of weights and values per module.

    Raises:
        CheckpointError: The source is missing, truncated or holds code.
        UnknownKeysError: A weight belongs to neither side.
        ValueError: Unknown suffix of the target.
    """
    target = Path(target)
    if target.suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'{target}: the suffix must be .safetensors or .pth')
    state = load_state(source)
    renamed = rename(state.get('state_dict', state))
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(target) as unfinished:
        _save(renamed, unfinished, target.suffix)
    return summary(renamed)


def _save(state: dict[str, Tensor], path: str, suffix: str) -> None:
    if suffix == '.pth':
        import torch
        torch.save(dict(state_dict=state), path)
        return
    from safetensors.torch import save_file
    # safetensors refuses two names for one memory: tied embeddings are written twice.
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    save_file(separate, path)


def summary(state: Mapping[str, Tensor]) -> str:
    """Weights and values per module, one line each."""
    weights, values = Counter(), Counter()
    for name, tensor in state.items():
        module = name.split('.', 1)[0]
        weights[module] += 1
        values[module] += tensor.numel()
    rows = [f'{module:32}{weights[module]:6} weights {values[module]:14,} values'
            for module in sorted(weights)]
    return '\n'.join([*rows, f'{"total":32}{sum(weights.values()):6} weights '
                             f'{sum(values.values()):14,} values'])
