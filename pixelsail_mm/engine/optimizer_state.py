"""NaN and infinity in what an optimizer remembers of the steps before, such as Adam's moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, get_world_size
from torch import Tensor, nn

from pixelsail_mm.engine.step_check import all_finite


def _inner(optimizer):
    """PyTorch's optimizer inside DeepSpeed's, or the optimizer itself."""
    return getattr(optimizer, 'optimizer', optimizer)


def _floats(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in state.items()
        if torch.is_tensor(value) and value.is_floating_point() and value.numel()
    }


def state_is_finite(optimizer) -> bool:
    """Tell whether all of an optimizer's state is finite in this process.

    Sums are read instead of a flag for each number, which on a CPU takes 25 times as long; only
    where a sum is not finite the numbers are looked at, since large ones may add up to infinity.

    Args:
        optimizer: PyTorch's, or DeepSpeed's around it.
    """
    states = _inner(optimizer).state.values()
    tensors = [value for state in states for value in _floats(state).values()]
    if not tensors:
        return True
    sums = [value.detach().sum().float() for value in tensors]
    device = max((one.device for one in sums), key=lambda found: found.type != 'cpu')
    if bool(torch.isfinite(torch.stack([one.to(device) for one in sums])).all()):
        return True
    return all_finite(tensors)


def named_state(model: nn.Module, optimizer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give what an optimizer remembers of each weight; with ZeRO this process's part.

    Args:
        model: The bare model.
        optimizer: PyTorch's, or DeepSpeed's around it.

    Yields:
        Name of the weight, and key -> Tensor.
    """
    inner = _inner(optimizer)
    for name, weight in model.named_parameters():
        if hasattr(weight, 'ds_id') and weight.requires_grad:  # ZeRO-3
            keys = {key for state in inner.state.values() for key in _floats(state)} - {'step'}
            yield name, {key: optimizer.get_local_fp32_param(weight, key) for key in sorted(keys)}
        elif getattr(weight, '_hp_mapping', None) is not None:  # ZeRO-1 and 2
            yield name, _floats(weight._hp_mapping.optim_fragment)
        elif weight in inner.state:
            yield name, _floats(inner.state[weight])


def bad_entries(model: nn.Module, optimizer) -> list[str]:
    """Name state that is NaN or infinite in this process, as ``exp_avg of WEIGHT (3 numbers)``.

    Args:
        model: The bare model.
        optimizer: PyTorch's, or DeepSpeed's around it.
    """
    found = []
    for name, state in named_state(model, optimizer):
        for key, value in state.items():
            count = int((~torch.isfinite(value)).sum())
            if count:
                found.append(f'{key} of {name} ({count} number{"s" if count > 1 else ""})')
    return found


def reset_bad_entries(optimizer, replicated: bool) -> None:
    """Set to zero, as at the start, what an optimizer remembers of weights where it is not finite.

    All moments of an affected number become zero; its neighbours keep theirs. With Adam the next
    step of such a number is at most ``(1 - beta1) / sqrt(1 - beta2)`` learning rates (3.2 for 0.9
    and 0.999), and those after it less.

    Args:
        optimizer: PyTorch's, or DeepSpeed's around it.
        replicated: All processes have the same state (no ZeRO), and must keep it so: what is bad in
            one becomes zero in all. Every process must call this.
    """
    states = list(_inner(optimizer).state.items())
    together = replicated and get_world_size() > 1
    places = [
        place for place, (_, state) in enumerate(states) if not all_finite(_floats(state).values())
    ]
    if together:
        places = sorted({place for found in all_gather_object(places) for place in found})
    for place in places:
        weight, state = states[place]
        values = _floats(state)
        whole = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        for value in values.values():
            bad = (~torch.isfinite(value)).to(weight.device, torch.uint8)
            if value.shape == weight.shape:
                whole |= bad
        if together:
            dist.all_reduce(whole, op=dist.ReduceOp.MAX)
        for value in values.values():
            bad = whole.to(value.device).bool() if value.shape == weight.shape else None
            with torch.no_grad():
                value[~torch.isfinite(value) if bad is None else bad] = 0
