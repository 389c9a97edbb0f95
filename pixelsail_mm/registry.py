"""Registries of the package (scope ``pixelsail_mm``).

``MODELS``, ``DATASETS``, ``TRANSFORMS``, ``METRICS`` and ``VISUALIZERS`` are children of
MMDetection's registries, the others of MMEngine's. A type that is not ours is therefore found
without a prefix, e.g. ``loss_mask=dict(type='DiceLoss')``.

Each registry imports its ``locations`` only when a type is first looked up, so importing this
module is cheap; ``mmdet.registry`` itself pulls in no mmdet model.
"""

from mmdet import registry as mmdet_registry
from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

from pixelsail_mm.compat.optional_packages import register_late_optimizers

SCOPE = 'pixelsail_mm'
# MMEngine reads `_base_ = 'pixelsail_mm::...'` only for packages of this list.
MODULE2PACKAGE[SCOPE] = SCOPE


class ChildRegistry(Registry):
    """Registry that also imports its ancestors' modules, once a type is found nowhere else.

    MMEngine searches ancestors but leaves their ``locations`` unimported, so that MMDetection's
    losses would be unknown until somebody imports ``mmdet.models``.
    """

    def get(self, key: str):
        """Class or function registered as ``key`` here or in an ancestor; None if unknown."""
        found = super().get(key)
        ancestor = self.parent
        while found is None and ancestor is not None:
            ancestor.import_from_location()
            found = super().get(key)
            ancestor = ancestor.parent
        return found


class OptimizerRegistry(ChildRegistry):
    """Registry that imports optional packages (bitsandbytes, ...) once an optimizer is unknown."""

    def get(self, key: str):
        """Class registered as ``key`` here, in an ancestor or in an optional package, or None."""
        found = super().get(key)
        if found is None:
            register_late_optimizers()
            found = super().get(key)
        return found


def _child(name: str, parent: Registry, *locations: str, kind: type = ChildRegistry) -> Registry:
    return kind(
        name,
        parent=parent,
        scope=SCOPE,
        locations=[f'{SCOPE}.{location}' for location in locations],
    )


MODELS = _child('model', mmdet_registry.MODELS, 'models')
DATASETS = _child('dataset', mmdet_registry.DATASETS, 'datasets')
TRANSFORMS = _child('transform', mmdet_registry.TRANSFORMS, 'datasets.transforms')
METRICS = _child('metric', mmdet_registry.METRICS, 'evaluation')
VISUALIZERS = _child('visualizer', mmdet_registry.VISUALIZERS, 'visualization')
DATA_SAMPLERS = _child('data sampler', mmengine_registry.DATA_SAMPLERS, 'datasets.mixing')
FUNCTIONS = _child('function', mmengine_registry.FUNCTIONS, 'datasets')
HOOKS = _child('hook', mmengine_registry.HOOKS, 'engine.hooks', 'visualization')
LOOPS = _child('loop', mmengine_registry.LOOPS, 'engine.loops')
RUNNERS = _child('runner', mmengine_registry.RUNNERS, 'engine')
STRATEGIES = _child('strategy', mmengine_registry.STRATEGIES, 'engine.strategies')
OPTIM_WRAPPERS = _child('optim_wrapper', mmengine_registry.OPTIM_WRAPPERS, 'engine.optim_wrappers')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'engine'
)
OPTIMIZERS = _child(
    'optimizer', mmengine_registry.OPTIMIZERS, 'engine.optim_wrappers', kind=OptimizerRegistry
)
PARAM_SCHEDULERS = _child('parameter scheduler', mmengine_registry.PARAM_SCHEDULERS, 'engine')
MODEL_WRAPPERS = _child('model_wrapper', mmengine_registry.MODEL_WRAPPERS, 'engine')
VISBACKENDS = _child('vis_backend', mmengine_registry.VISBACKENDS, 'visualization')
LOG_PROCESSORS = _child('log_processor', mmengine_registry.LOG_PROCESSORS, 'engine')

#: All of them.
REGISTRIES = [value for value in list(vars().values()) if isinstance(value, Registry)]


def known_parts(registry: Registry) -> dict[str, type]:
    """Name -> part of a registry, then of those above it, as far as no nearer part hides it."""
    above = {} if registry.parent is None else known_parts(registry.parent)
    return registry.module_dict | {
        name: part for name, part in above.items() if name not in registry.module_dict
    }
