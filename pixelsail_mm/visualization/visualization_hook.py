"""Pictures of predictions during validation and testing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.visualization import LocalVisBackend
from PIL import Image

from pixelsail_mm.models.experts.images import original_image
from pixelsail_mm.registry import HOOKS
from pixelsail_mm.visualization.pixel_visualizer import build_visualizer


@HOOKS.register_module()
class PixelVisualizationHook(Hook):
    """Write pictures of predicted samples to ``<show_dir>/<prefix>/<sample_id>.png``.

    The prefix is that of the metric, so that a data set tested twice in different ways gets two
    folders; with several metrics on one data loader it is the name of each sample's dataset. While
    validating, ``<show_dir>/val_<iteration>`` takes the place of ``<show_dir>``. In distributed
    runs the main process draws samples of its own share only. Backends of the run's visualizer
    that show pictures elsewhere (TensorBoard, ...) get them too.

    Args:
        show_dir: Folder of the pictures; ``None`` switches the hook off. ``tools/test.py
            --show-dir`` sets it.
        num: Pictures per data loader (``select='spread'``) or per folder (``'first'``).
        select: ``'spread'``: evenly over the data loader; ``'first'``: the first of each folder.
        visualizer: Config of the visualizer that draws; by default the run's own, or a
            ``PixelVisualizer`` where that draws no answers.
    """

    priority = 'LOW'

    def __init__(
        self,
        show_dir: str | None = None,
        num: int = 20,
        select: str = 'spread',
        visualizer: dict | None = None,
    ) -> None:
        if select not in ('spread', 'first'):
            raise ValueError(
                f"PixelVisualizationHook: select must be 'spread' or 'first', got {select!r}"
            )
        self.show_dir = show_dir
        self.num = num
        self.select = select
        self.visualizer_cfg = visualizer
        self._visualizer = None
        self._seen = 0
        self._drawn: Counter = Counter()

    def _before_epoch(self, runner, mode: str = 'train') -> None:
        """Start counting anew for a data loader."""
        self._seen = 0

    def _after_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
        mode: str = 'train',
    ) -> None:
        """Draw the chosen samples of a batch of validation or testing."""
        if self.show_dir is None or mode == 'train':
            return
        loop = runner.val_loop if mode == 'val' else runner.test_loop
        folder = Path(self.show_dir, f'val_{runner.iter}' if mode == 'val' else '')
        self._draw_batch(runner, loop, folder, data_batch, outputs)

    def _after_epoch(self, runner, mode: str = 'train') -> None:
        """Log the folders of the pictures."""
        for folder, count in sorted(self._drawn.items()):
            runner.logger.info(f'{count} pictures of predictions in {folder}')
        self._drawn.clear()

    def _draw_batch(
        self, runner: Any, loop: Any, folder: Path, data_batch: dict, outputs: Sequence
    ) -> None:
        from mmengine.dist import get_world_size, is_main_process

        if not is_main_process():
            return
        share = getattr(
            loop.dataloader.batch_sampler,
            'num_samples',
            -(-len(loop.dataloader.dataset) // get_world_size()),
        )
        # The same metric under two protocols: refcoco_val, refcoco_val_paper.
        prefixes = [metric.prefix or '' for metric in loop.evaluator.metrics]
        prefix = prefixes[0] if all(one.startswith(prefixes[0]) for one in prefixes) else None
        for i, sample in enumerate(outputs):
            place = folder / _file_name(prefix or sample.get('dataset') or 'samples')
            if self._chosen(place, share):
                path = place / f'{_file_name(sample.get("sample_id") or self._seen)}.png'
                self._draw(runner, sample, data_batch['inputs']['image'][i], path)
                self._drawn[str(place)] += 1
            self._seen += 1

    def _chosen(self, place: Path, share: int) -> bool:
        """Whether to draw the sample that is number ``_seen`` of the ``share`` of this process."""
        if self.select == 'first':
            return self._drawn[str(place)] < self.num
        return self._seen * self.num // share != (self._seen - 1) * self.num // share

    def _draw(self, runner: Any, sample: Any, model_image: Any, path: Path) -> None:
        if self._visualizer is None:
            cfg = self.visualizer_cfg or runner.cfg.get('visualizer')
            self._visualizer = build_visualizer(cfg)
        self._visualizer.add_datasample(
            path.stem, _image_of(sample, model_image), sample, out_file=path
        )
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):  # that one would write a second file
                backend.add_image(
                    f'{path.parent.name}/{path.stem}', self._visualizer.get_image(), runner.iter
                )


def _image_of(sample: Any, model_image: Any) -> np.ndarray | None:
    """Image at its original size: kept in the sample, read from file, or scaled back."""
    if sample.get('image') is not None or sample.get('img_path'):
        return original_image(sample).permute(1, 2, 0).numpy()
    if model_image is None:
        return None
    height, width = sample.ori_shape
    image = Image.fromarray(model_image.permute(1, 2, 0).cpu().numpy())
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _file_name(text: Any) -> str:
    """Make a text fit for a file name."""
    return re.sub(r'[^\w.-]+', '_', str(text)).strip('._') or 'unnamed'
