"""The rule for keys that a part inherits when an override replaces its type.

MMEngine merges key by key, so that ``optimizer=dict(type='SGD')`` keeps the ``betas`` of the AdamW
before it, and SGD cannot be built. Here an override with another ``type`` inherits the keys that
the new type takes (``lr``); the others are left out and the log says so. Keys that the override
itself sets are never left out: one that the new type does not take is an error when it is built.
``_delete_=True`` inherits nothing, as in MMEngine.

A merge cannot know the new class, whose module the config may import later. It marks the inherited
keys (:data:`_INHERITED`), and :func:`settle` looks at them when all is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.config.config import DELETE_KEY
from mmengine.logging import print_log
from mmengine.registry import Registry

from pixelsail_mm import registry as registries
from pixelsail_mm.type_names import type_name

#: Key of a merged part: names of the keys that were set for another type, and that type.
_INHERITED = '_inherited_'
# Keys that are not for the part itself, but for who builds it.
_OF_THE_BUILDER = {
    'type',
    '_scope_',
    'constructor',
    'paramwise_cfg',
    'priority',
    'convert_to_iter_based',
    _INHERITED,
}
# Registry of what stands under a config key, and of all below it until another key of these.
_REGISTRIES = dict(
    model=registries.MODELS,
    optim_wrapper=registries.OPTIM_WRAPPERS,
    optimizer=registries.OPTIMIZERS,
    param_scheduler=registries.PARAM_SCHEDULERS,
    dataset=registries.DATASETS,
    datasets=registries.DATASETS,
    sampler=registries.DATA_SAMPLERS,
    batch_sampler=registries.DATA_SAMPLERS,
    collate_fn=registries.FUNCTIONS,
    pipeline=registries.TRANSFORMS,
    train_pipeline=registries.TRANSFORMS,
    test_pipeline=registries.TRANSFORMS,
    inference_pipeline=registries.TRANSFORMS,
    val_evaluator=registries.METRICS,
    test_evaluator=registries.METRICS,
    similarity=registries.FUNCTIONS,
    train_cfg=registries.LOOPS,
    val_cfg=registries.LOOPS,
    test_cfg=registries.LOOPS,
    default_hooks=registries.HOOKS,
    custom_hooks=registries.HOOKS,
    visualizer=registries.VISUALIZERS,
    vis_backends=registries.VISBACKENDS,
    log_processor=registries.LOG_PROCESSORS,
)


@contextmanager
def marking_swaps() -> Iterator[None]:
    """Let MMEngine's merges of config files and overrides mark what a swapped part inherits."""
    original = Config.__dict__['_merge_a_into_b']

    def merge(a: dict, b: dict | list, allow_list_keys: bool = False) -> dict | list:
        if isinstance(b, dict) and a.get(DELETE_KEY):  # an item of a list: MMEngine keeps the key
            a, b = {key: value for key, value in a.items() if key != DELETE_KEY}, {}
        merged = original.__func__(a, b, allow_list_keys)
        if isinstance(b, dict):
            _mark(merged, a, b)
        return merged

    Config._merge_a_into_b = staticmethod(merge)
    try:
        yield
    finally:
        Config._merge_a_into_b = original


def _mark(merged: dict, override: dict, base: dict) -> None:
    mark = base.get(_INHERITED)
    old = type_name(base.get('type'))
    if old and type_name(override.get('type', old)) != old:
        mark = dict(of=old, keys=[key for key in base if key not in _OF_THE_BUILDER])
    if mark:
        merged[_INHERITED] = dict(mark, keys=[key for key in mark['keys'] if key not in override])


def settle(node: Any, registry: Registry | None = None, where: str = '') -> None:
    """Delete, in place, inherited keys that a swapped part does not take; log one line per part.

    Args:
        node: A config read under :func:`marking_swaps`, with its ``custom_imports`` imported.
        registry: Registry that builds ``node``; None if nothing does.
        where: Its place in the config, for the log.
    """
    if isinstance(node, (list, tuple)):
        for i, item in enumerate(node):
            settle(item, registry, f'{where}.{i}')
    elif isinstance(node, (dict, Config)):
        mark = node.pop(_INHERITED, None)
        if mark and registry is not None:
            _leave_out(node, mark, registry, where)
        for key, value in node.items():
            settle(value, _REGISTRIES.get(key, registry), f'{where}.{key}'.lstrip('.'))


def _leave_out(part: dict, mark: dict, registry: Registry, where: str) -> None:
    kind = part['type']
    taken = accepted_keys(registry.get(kind) if isinstance(kind, str) else kind)
    left = [key for key in mark['keys'] if key in part and taken is not None and key not in taken]
    for key in left:
        del part[key]
    if left:
        print_log(
            f'{where}: {type_name(kind)} in the place of {mark["of"]} does not take '
            f'{", ".join(left)}: left out',
            logger='current',
        )


def accepted_keys(part: Callable | None) -> set[str] | None:
    """Names of the arguments with which a part can be built; None if it takes any.

    ``**kwargs`` of a class stand for the arguments of the class above it. A class may name
    arguments of the class above that it refuses in ``refused_options``.

    Args:
        part: A class or function; None for an unknown one.
    """
    if part is None:
        return None
    names: set[str] = set()
    makers = (
        [base.__init__ for base in part.__mro__ if '__init__' in vars(base)]
        if (inspect.isclass(part))
        else [part]
    )
    for maker in makers:
        arguments = inspect.signature(maker).parameters.values()
        names |= {
            argument.name
            for argument in arguments
            if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        }
        if all(argument.kind != argument.VAR_KEYWORD for argument in arguments):
            return names - getattr(part, 'refused_options', set()) - {'self'}
    return None
