"""Which parts of a model a stage of training moves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pixelsail_mm.errors import ConfigError


def train_only(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze every parameter that lies in none of the named parts.

    Freezing happens when the model is built, so that data parallel wrappers, ZeRO and the optimizer
    never see what does not train: its gradients and optimizer states cost no memory. A tensor that
    two parts share (tied embeddings) trains if one of them does.

    Nothing is unfrozen: with LoRA a part of the decoder is its adapters and rows of new tokens.

    Args:
        model: The model.
        parts: Names of modules or parameters as in its ``state_dict``, e.g.
            ``['backbone.patch_embed']``.

    Raises:
        ConfigError: A part has no parameter, or none that can train.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    wanted = set()
    for part in parts:
        found = [parameter for name, parameter in named if _inside(name, part)]
        if not found:
            raise ConfigError(
                f'model.trainable: {part!r} has no parameter; name modules of '
                f'{_neighbours(model, part)}'
            )
        if not any(parameter.requires_grad for parameter in found):
            raise ConfigError(
                f'model.trainable: {part!r} is frozen by backbone.lora, of which '
                'only adapters and the rows of new tokens train; remove one of '
                'the two'
            )
        wanted.update(id(parameter) for parameter in found)
    for parameter in model.parameters():
        if id(parameter) not in wanted:
            parameter.requires_grad_(False)


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + '.')


def _neighbours(model: nn.Module, part: str) -> str:
    """Names beside the deepest module that a wrong name still hits."""
    module, path = model, []
    for step in part.split('.'):
        children = dict(module.named_children())
        if step not in children:
            break
        module = children[step]
        path.append(step)
    found = '.'.join(path)
    prefix = f'{found}.' if found else ''
    known = [
        f'{prefix}{name}'
        for name, child in module.named_children()
        if any(True for _ in child.parameters())
    ]
    return ', '.join(known) or found
