"""The part of an ONNX graph that computes one tensor."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.errors import ConfigError

_MAX_LISTED = 6


def import_optional(name: str) -> ModuleType:
    """Import ``onnx`` or ``onnxruntime``, which only this expert needs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'OnnxExpert needs the package {name} ({error}): pip install "pixelsail_mm[experts]"'
        ) from error


def subgraph(file: Path, output: str) -> bytes:
    """Cut what one tensor needs out of a model, in memory; the file stays as it is.

    onnxruntime computes every output of a graph, asked for or not. Without the nodes behind the
    tensor ISNet's 256x64x64 map takes 2.5 instead of 3.9 s. Weights above 2 GB lie in files of
    their own (protobuf's limit), which are neither read nor copied here.

    Args:
        file: The model.
        output: Name of any tensor in its graph, whether or not it is an output of the graph.

    Returns:
        The smaller model, whose only output is the tensor.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is not an ONNX model, or has no such tensor.
    """
    onnx = import_optional('onnx')
    model = _read(file)
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output if name}
    if output not in maker:
        raise ConfigError(
            f'distill.expert.output: {file} has no tensor {output!r}; '
            f'{_suggest(graph, list(maker), output)}'
        )
    kept, used = _ancestors(maker, output)
    _keep(graph.node, lambda node: id(node) in kept)
    _keep(graph.initializer, lambda weight: weight.name in used)
    _keep(graph.sparse_initializer, lambda weight: weight.values.name in used)
    _keep(graph.input, lambda value: value.name in used)
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=output))
    return model.SerializeToString()


def weights_sha256(file: Path) -> str | None:
    """SHA-256 of a model and of the files of its external weights; None if one is not here.

    Of several files it is that of their checksums one after the other, the model's first.
    """
    if not file.is_file():
        return None
    names = {
        entry.value
        for weight in _read(file).graph.initializer
        for entry in weight.external_data
        if entry.key == 'location'
    }
    files = [file, *(file.parent / name for name in sorted(names))]
    if not all(path.is_file() for path in files):
        return None
    sums = [sha256_of(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256(''.join(sums).encode()).hexdigest()


def _read(file: Path) -> Any:
    """Parse a model without its external weights."""
    onnx = import_optional('onnx')
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise FileNotFoundError(f'distill.expert.model: file {file} does not exist')
    try:
        return onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise ConfigError(
            f'distill.expert.model: {file} is not an ONNX model, or only a part of '
            f'one ({error}); get it again'
        ) from error


def _keep(entries: Any, wanted) -> None:
    kept = [entry for entry in entries if wanted(entry)]
    del entries[:]
    entries.extend(kept)


def _ancestors(maker: dict, output: str) -> tuple[set[int], set[str]]:
    """Ids of the nodes that a tensor depends on, and names of all tensors they use."""
    kept: set[int] = set()
    used: set[str] = set()
    names = [output]
    while names:
        name = names.pop()
        used.add(name)
        node = maker.get(name)
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            names += _used_by(node)
    return kept, used


def _used_by(node: Any) -> Iterator[str]:
    """Names that a node reads; branches of If and Loop see the tensors around them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in [*([attribute.g] if attribute.HasField('g') else []), *attribute.graphs]:
            yield from (value.name for value in inner.output)
            for part in inner.node:
                yield from _used_by(part)


def _suggest(graph: Any, names: list[str], wanted: str) -> str:
    close = difflib.get_close_matches(wanted, names, n=_MAX_LISTED, cutoff=0.5)
    shapes = {
        value.name: 'x'.join(
            str(size.dim_value or '?') for size in value.type.tensor_type.shape.dim
        )
        for value in [*graph.value_info, *graph.output]
    }

    def listed(chosen):
        return ', '.join(f'{name} {shapes.get(name, "")}'.strip() for name in chosen)

    outputs = listed([value.name for value in graph.output][: 2 * _MAX_LISTED])
    return (f'near it are {listed(close)}; ' if close else '') + f'its outputs are {outputs}'
