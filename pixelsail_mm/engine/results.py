"""The result file of a test: numbers with everything needed to get them again."""

import json
import platform
from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from pixelsail_mm.datasets.templates import templates_version
from pixelsail_mm.downloads.archives import sha256_of
from pixelsail_mm.errors import ConfigError

_PACKAGES = ('torch', 'transformers', 'mmengine', 'mmcv', 'mmdet', 'xtuner', 'numpy')
_VISUALIZATION_HOOK = 'PixelVisualizationHook'


def package_versions() -> dict:
    """Give the versions of this package, Python and the libraries that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    from pixelsail_mm import __version__

    versions = dict(pixelsail_mm=__version__, python=platform.python_version())
    for name in _PACKAGES:
        try:
            versions[name] = version('mmcv-lite' if name == 'mmcv' else name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _plain(value):
    """What JSON does not know: arrays and numbers of NumPy and PyTorch, and the rest as text."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def _settings(metric: BaseMetric) -> dict:
    """Name, prefix and whatever else a metric says that its values depend on."""
    return dict(type=type(metric).__name__, prefix=metric.prefix, **getattr(metric, 'settings', {}))


def write_results(
    path: str | Path, runner, metrics: dict, settings: dict, config: str, checkpoint: str
) -> None:
    """Write metrics and settings as one JSON file.

    Args:
        path: File to write; its folder is created.
        runner: The runner after ``test()``.
        metrics: What ``test()`` returned.
        settings: The config as given, before the runner filled in defaults.
        config: Path of the config file.
        checkpoint: Path of the checkpoint.
    """
    loop = runner.test_loop
    parts = getattr(loop, 'parts', [loop])
    loaders, evaluators = settings['test_dataloader'], settings['test_evaluator']
    if not isinstance(loaders, list):
        loaders, evaluators = [loaders], [evaluators]
    result = dict(
        metrics=metrics,
        config=config,
        # Hashing gigabytes takes seconds; a loop that writes predictions has done it.
        checkpoint=dict(
            path=str(checkpoint),
            sha256=getattr(loop, 'checkpoint_sha256', None) or sha256_of(checkpoint),
        ),
        seed=runner.seed,
        processes=runner.world_size,
        versions=package_versions(),
        model=settings['model'],
        question_templates=templates_version(),
        datasets=[
            dict(
                samples=len(part.dataloader.dataset),
                dataloader=loader,
                evaluator=evaluator,
                metric_settings=[_settings(metric) for metric in part.evaluator.metrics],
            )
            for part, loader, evaluator in zip(parts, loaders, evaluators)
        ],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, default=_plain, indent=2, ensure_ascii=False) + '\n')
    runner.logger.info(f'wrote results to {path}')


def show_predictions(cfg: Config, folder: str, number: int) -> None:
    """Make the config's visualization hook draw predictions into a folder.

    Args:
        cfg: The config; its ``default_hooks.visualization`` is changed.
        folder: Where to draw.
        number: Samples to draw, at most.

    Raises:
        ConfigError: The config has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(
            '--show-dir needs default_hooks.visualization=dict(type='
            f"'{_VISUALIZATION_HOOK}'), as in configs/_base_/default_runtime.py"
        )
    hook.update(show_dir=folder, num=number)
