"""Reading and writing weights without ever running code from a file.

Every read of a checkpoint in the package goes through :func:`load_state`: ``.safetensors`` files,
``.pth`` files of MMEngine (with ``weights_only=True`` and the short list of types in
:func:`trusted_types`), DeepSpeed checkpoint folders and Hugging Face folders.
"""

import contextlib
import json
import os
import pickle
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from pixelsail_mm.engine.errors import CheckpointError

#: Modules that only training uses; a checkpoint without them is complete for prediction.
TRAINING_ONLY_PREFIXES = ('distill.', )
_ALIASES = 'aliases'
_NUMPY_KINDS = ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')
_REFUSED = re.compile(r'(?im)(unsupported (?:global|class)\b.*?|attribute \S+ of .*? not allowed)'
                      r'(?= was not|\. |$)')
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: type, name: str):
    """Stand in for ``getattr`` while unpickling: gives HistoryBuffer's statistics, nothing else."""
    from mmengine.logging import HistoryBuffer
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(HistoryBuffer, name)


def trusted_types() -> list:
    """List what a checkpoint may hold besides tensors and plain Python containers.

    MMEngine keeps its log history as numpy arrays in ``HistoryBuffer`` objects, whose pickle also
    names four of its own methods through ``getattr``; DeepSpeed's ZeRO stages 1 and 2 keep their
    loss scaler and an enum. None of them runs anything when rebuilt.

    Returns:
        list: Types, or (object, dotted name) pairs, as ``torch.serialization.safe_globals`` takes.
    """
    from mmengine.logging import HistoryBuffer
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    trusted = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, HistoryBuffer,
               (_history_method, 'builtins.getattr')]
    trusted += [(function, f'numpy.core.multiarray.{function.__name__}')
                for function in (multiarray._reconstruct, multiarray.scalar)]
    trusted += [type(np.dtype(kind)) for kind in _NUMPY_KINDS]
    return trusted


def _trusted_deepspeed_types() -> list:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


@contextlib.contextmanager
def weights_only_loading(deepspeed: bool = False) -> Iterator[None]:
    """Force ``weights_only=True`` on every ``torch.load`` inside, also in other libraries' code.

    DeepSpeed asks for ``weights_only=False`` explicitly; PyTorch's
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` overrules that.

    Args:
        deepspeed: Also trust DeepSpeed's own types (imports DeepSpeed).
    """
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    trusted = trusted_types() + (_trusted_deepspeed_types() if deepspeed else [])
    os.environ[name] = '1'
    try:
        with torch.serialization.safe_globals(trusted):
            yield
    finally:
        if before is None:
            os.environ.pop(name)
        else:
            os.environ[name] = before


def _refusal(error: BaseException) -> Optional[str]:
    """Find in PyTorch's page of advice the type or attribute that was refused."""
    found = _REFUSED.search(str(error))
    return found.group(1) if found else None


def one_line(error: BaseException) -> str:
    """Cut an error's text to the line that says what is wrong.

    Args:
        error: Any error.
    """
    return _refusal(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_safetensors(path: Path, map_location: str) -> dict:
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework='pt', device=str(map_location)) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(path, f'not a readable safetensors file ({error})',
                              'copy or download it again; it may be truncated') from error
    for alias, key in json.loads(metadata.get(_ALIASES, '{}')).items():
        state[alias] = state[key]
    return dict(state_dict=state, meta=metadata)


def _read_pickle(path: Path, map_location: str) -> dict:
    try:
        with weights_only_loading():
            content = torch.load(path, map_location=map_location)
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        refused = _refusal(error)
        if refused:
            raise CheckpointError(
                path, f'holds more than weights, and loading that could run code ({refused})',
                'ask its author for a .safetensors file, or convert it where you trust it'
            ) from error
        raise CheckpointError(
            path, f'not a readable PyTorch file, probably truncated ({one_line(error)})',
            'copy it again, or resume from an earlier checkpoint (--resume PATH)') from error
    if not isinstance(content, dict):
        raise CheckpointError(path, f'holds a {type(content).__name__}, not a dict of weights',
                              'save dict(state_dict=model.state_dict()) instead')
    return content if 'state_dict' in content else dict(state_dict=content)


def _shards_of(index: Path) -> List[str]:
    try:
        return list(json.loads(index.read_text())['weight_map'].values())
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(index, f'not a readable list of shards ({error})',
                              'copy or download it again') from error


def _read_folder(path: Path, map_location: str) -> dict:
    if any(path.glob('*_model_states.pt')):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
        try:
            with weights_only_loading(deepspeed=True):
                state = get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name)
        except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(path, f'not a complete DeepSpeed checkpoint ({one_line(error)})',
                                  'use an earlier one') from error
        return dict(state_dict=dict(state))
    shards = sorted(path.glob('*.safetensors'))
    if not shards:
        raise CheckpointError(path, 'a folder with neither DeepSpeed nor safetensors files in it',
                              'pass a .pth or .safetensors file')
    for index in path.glob('*.safetensors.index.json'):
        absent = {*_shards_of(index)} - {shard.name for shard in shards}
        if absent:
            raise CheckpointError(path, f'{index.name} lists {", ".join(sorted(absent))}, which '
                                  'are not there', 'copy or download the missing files')
    state: Dict[str, Tensor] = {}
    for shard in shards:
        state.update(_read_safetensors(shard, map_location)['state_dict'])
    return dict(state_dict=state)


def load_state(path: Union[str, Path], map_location: str = 'cpu') -> dict:
    """Read a checkpoint; code in it never runs.

    Args:
        path: A ``.safetensors`` file, a ``.pth``/``.pt``/``.bin`` file, a DeepSpeed checkpoint
            folder (its shards are put together in float32) or a folder of safetensors shards.
        map_location: Device the tensors are read to.

    Returns:
        dict: Always has ``state_dict`` (name -> Tensor); a training checkpoint also has ``meta``,
        ``optimizer``, ``param_schedulers`` and ``message_hub``.

    Raises:
        CheckpointError: The file is missing, truncated, or holds anything but weights and the
            types of :func:`trusted_types`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path, map_location)
    if not path.is_file():
        raise CheckpointError(path, 'no such file', 'check the path')
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)
    return _read_pickle(path, map_location)


@dataclass
class LoadReport:
    """What became of every key of a checkpoint and of a model.

    Attributes:
        source: The checkpoint's path.
        loaded: Model keys that got their value from the checkpoint.
        missing: Model keys the checkpoint does not hold.
        unexpected: Checkpoint keys the model does not have (skipped).
        reshaped: (key, shape in the checkpoint, shape in the model) of the same size, loaded.
        mismatched: The same triple where sizes differ; not loaded.
    """
    source: str
    loaded: List[str] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    unexpected: List[str] = field(default_factory=list)
    reshaped: List[Tuple[str, tuple, tuple]] = field(default_factory=list)
    mismatched: List[Tuple[str, tuple, tuple]] = field(default_factory=list)

    def table(self, max_names: int = 8) -> str:
        """Format the report: one row per top-level module, then the keys that need a look.

        Args:
            max_names: Keys listed per kind before the rest is summed up.
        """
        kinds = dict(loaded=self.loaded, missing=self.missing, unexpected=self.unexpected,
                     mismatched=[key for key, _, _ in self.mismatched])
        counts = {kind: Counter(key.split('.')[0] for key in keys) for kind, keys in kinds.items()}
        modules = sorted(set().union(*counts.values()))
        width = max([len(module) for module in modules] + [6])
        lines = [f'weights from {self.source}',
                 f'{"module":<{width}}' + ''.join(f'{kind:>12}' for kind in kinds)]
        for module in modules:
            lines.append(f'{module:<{width}}'
                         + ''.join(f'{counts[kind][module]:>12}' for kind in kinds))
        notes = dict(missing=self.missing, unexpected=self.unexpected,
                     reshaped=[f'{key} {old} -> {new}' for key, old, new in self.reshaped],
                     mismatched=[f'{key} {old} -> {new}' for key, old, new in self.mismatched])
        for kind, names in notes.items():
            if names:
                rest = f' and {len(names) - max_names} more' if len(names) > max_names else ''
                lines.append(f'{kind}: ' + ', '.join(names[:max_names]) + rest)
        return '\n'.join(lines)


def _shared_names(model: nn.Module) -> Dict[str, List[str]]:
    """Map each state-dict key to all keys of the same tensor (tied weights)."""
    groups: Dict[int, List[str]] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(key)
    return {key: names for names in groups.values() for key in names}


def apply_weights(model: nn.Module, state: Dict[str, Tensor], source: str,
                  required_prefixes: Optional[Sequence[str]] = None) -> LoadReport:
    """Put a state dict into a model; see :func:`load_weights`.

    Args:
        model: The model.
        state: Name -> Tensor; a leading ``module.`` is dropped.
        source: Name of the origin, for messages.
        required_prefixes: As in :func:`load_weights`.
    """
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    own, shared = model.state_dict(), _shared_names(model)
    report, usable = LoadReport(source=str(source)), {}
    for key, value in state.items():
        if key not in own:
            report.unexpected.append(key)
            continue
        old, new = tuple(value.shape), tuple(own[key].shape)
        if old == new:
            usable[key] = value
        elif value.numel() == own[key].numel():
            report.reshaped.append((key, old, new))
            usable[key] = value.reshape(new)
        else:
            report.mismatched.append((key, old, new))
    model.load_state_dict(usable, strict=False)
    bad = {key for key, _, _ in report.mismatched}
    for key in own:
        if any(name in usable for name in shared[key]):
            report.loaded.append(key)
        elif key not in bad:
            report.missing.append(key)
    _check_required(report, required_prefixes)
    return report


def _check_required(report: LoadReport, required_prefixes: Optional[Sequence[str]]) -> None:
    if required_prefixes is None:
        def needed(key):
            return not key.startswith(TRAINING_ONLY_PREFIXES)
    else:
        def needed(key):
            return key.startswith(tuple(required_prefixes))
    sizes = [f'{key} (file {old}, model {new})' for key, old, new in report.mismatched
             if needed(key)]
    if sizes:
        raise CheckpointError(
            report.source, f'{len(sizes)} tensors have other sizes than the model, e.g. {sizes[0]}',
            'use the config this checkpoint was trained with (widths, layers, tokenizer)')
    missing = [key for key in report.missing if needed(key)]
    if missing:
        names = ', '.join(missing[:5]) + (', ...' if len(missing) > 5 else '')
        remedy = ('no key matches at all: an official release goes through '
                  'tools/model_converters/official_to_mm.py first' if not report.loaded else
                  'use the config of this checkpoint, or a checkpoint that has these modules')
        raise CheckpointError(
            report.source, f'{len(missing)} weights that this task uses are missing: {names}',
            remedy)


def load_weights(model: nn.Module, path: Union[str, Path],
                 required_prefixes: Optional[Sequence[str]] = None) -> LoadReport:
    """Load a checkpoint's weights into a model and say what was loaded, missed and skipped.

    A key whose tensor is tied to one that the file holds counts as loaded; tensors of equal size
    but other shape (a patch embedding kept as convolution, say) are reshaped.

    Args:
        model: The model, not wrapped.
        path: Anything :func:`load_state` reads.
        required_prefixes: Key prefixes that must be complete. None: every key but the modules that
            only training uses (``distill.``); an empty list: nothing is required.

    Returns:
        LoadReport: The fate of every key.

    Raises:
        CheckpointError: The file cannot be read, or a required key is missing or of other size.
    """
    return apply_weights(model, load_state(path)['state_dict'], str(path), required_prefixes)


def save_weights(state: Dict[str, Tensor], path: Union[str, Path],
                 metadata: Optional[Dict[str, str]] = None) -> None:
    """Write a state dict as one safetensors file, atomically.

    Tied tensors are written once; the other names go into the file's metadata and come back on
    :func:`load_state`.

    Args:
        state: Name -> Tensor, on any device.
        path: File to write.
        metadata: Further text entries for the file's header.
    """
    from safetensors.torch import save_file

    from pixelsail_mm.engine.checkpoint_files import replace_when_complete
    first: Dict[tuple, str] = {}
    tensors, aliases = {}, {}
    for key, value in state.items():
        identity = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (key, )
        if identity in first:
            aliases[key] = first[identity]
        else:
            first[identity] = key
            tensors[key] = value.detach().cpu().contiguous()
    header = {'format': 'pt', _ALIASES: json.dumps(aliases), **(metadata or {})}
    with replace_when_complete(path) as unfinished:
        Path(unfinished).touch()
        mode = os.stat(unfinished).st_mode
        save_file(tensors, unfinished, metadata=header)
        os.chmod(unfinished, mode)  # safetensors makes the file private
