"""Pictures of what a model learned from its experts: both feature maps in the same colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.images import original_image
from pixelsail_mm.models.heads.names import MASK
from pixelsail_mm.registry import DATASETS, MODELS

SPLITS = ('test', 'val', 'train')
_MAX_CELLS = 4096  # per image, for the principal components


@dataclass
class Comparison:
    """One image and one loss.

    Attributes:
        loss: Name of the loss.
        feature: ``'neck'`` or ``'backbone'``.
        image: uint8 ``(H,W,3)``.
        name: Stem of the image's file, or the id of its sample; with a number behind it where
            several images have one.
        ours: Projected features ``(h,w,C)`` float32.
        theirs: The expert's, resized to ours.
    """

    loss: str
    feature: str
    image: np.ndarray
    name: str
    ours: Tensor
    theirs: Tensor

    def scores(self) -> dict[str, float]:
        """Agreement of the maps.

        ``cosine`` of the cells' features, ``centred``: the same after the mean of the expert's map
        is taken from both, so that a map that is the same everywhere has nothing; and ``mse``.
        """
        mean = self.theirs.mean((0, 1))

        def cosine(first, second):
            return F.cosine_similarity(first, second, dim=-1).mean().item()

        return dict(
            cosine=cosine(self.ours, self.theirs),
            centred=cosine(self.ours - mean, self.theirs - mean),
            mse=F.mse_loss(self.ours, self.theirs).item(),
        )


class SharedColours:
    """Principal components of an expert's features as red, green and blue.

    The components and their ranges are the expert's, of all images together; our maps are shown in
    the same, so that equal colours are equal features. One scale serves all three, so that what
    varies little stays faint.

    Args:
        maps: The expert's maps ``(h,w,C)``.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        cells = torch.cat([_thinned(feature.flatten(0, 1)) for feature in maps])
        self.mean = cells.mean(0)
        # Columns beyond the rank are zero: an expert may have fewer than three channels.
        basis = torch.linalg.svd(cells - self.mean, full_matrices=False).Vh[:3]
        self.basis = F.pad(basis, (0, 0, 0, 3 - len(basis)))
        projected = (cells - self.mean) @ self.basis.T
        low, high = (projected.quantile(share, dim=0) for share in (0.01, 0.99))
        self.middle = (low + high) / 2
        self.range = (high - low).max().clamp(min=1e-6)

    def __call__(self, feature: Tensor) -> np.ndarray:
        """Picture uint8 ``(h,w,3)`` of a map ``(h,w,C)``."""
        values = (feature - self.mean) @ self.basis.T
        values = (values - self.middle) / self.range + 0.5
        return (values.clamp(0, 1) * 255).round().byte().numpy()


def _thinned(cells: Tensor) -> Tensor:
    """At most ``_MAX_CELLS`` evenly spaced rows."""
    return cells[:: -(-len(cells) // _MAX_CELLS)]


def live_experts(model: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a model's config in which a cache gives way to the expert that it is of.

    A cache holds the training images only. One that does not say whose it is stays.

    Raises:
        ConfigError: The model has no distillation loss.
    """
    if not model.get('distill'):
        raise ConfigError('the config has no `model.distill`: there is nothing to compare')
    losses = [
        dict(loss, expert=loss['expert'].get('of') or loss['expert']) for loss in model['distill']
    ]
    return dict(model, distill=losses)


def load_with_heads(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the model with its experts and load a checkpoint of its training.

    Raises:
        ConfigError: The checkpoint has no projections onto the experts.
        CheckpointError: It is unreadable, or of another model.
    """
    from pixelsail_mm.checkpoints.checkpoint import apply_weights, load_state

    state = load_state(checkpoint)['state_dict']
    if not any('distill.' in key for key in state):
        raise ConfigError(
            f'{checkpoint} has no projections onto the experts: exported weights '
            'leave them out; give a checkpoint of the training (iter_N.pth)'
        )
    model = MODELS.build(live_experts(cfg.model))
    apply_weights(model, state, checkpoint, required_prefixes=[''])
    return model.eval()


def distinct_images(cfg: Config, split: str, number: int) -> Iterator[dict]:
    """Samples with different images, of all data sets of a split."""
    loaders = cfg.get(f'{split}_dataloader')
    if loaders is None:
        raise ConfigError(f'the config has no `{split}_dataloader`; --split is one of {SPLITS}')
    seen: set = set()
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        dataset = DATASETS.build(loader['dataset'])
        for index in range(len(dataset)):
            sample = dataset[index]
            path = sample['data_samples'].get('img_path')
            if sample['inputs']['image'] is None or path in seen:
                continue
            if len(seen) == number:
                return
            seen.add(path)
            yield sample


@torch.no_grad()
def compare(model: nn.Module, sample: dict) -> list[Comparison]:
    """Both maps of an image for every distillation loss of the model."""
    data = model.data_preprocessor(pseudo_collate([sample]))
    [described] = data['data_samples']
    maps = model.patch_maps(model.encode(data['inputs']), data['inputs'])
    sources = dict(backbone=maps, neck=model.head_features(maps).get(MASK))
    path = described.get('img_path')
    image = original_image(described).permute(1, 2, 0).numpy()
    found = []
    for loss in model.distill:
        ours = loss.proj(sources[loss.feature][0]).float().cpu()
        [theirs] = loss.expert([described])
        theirs = F.interpolate(
            theirs[None].float().cpu(), size=ours.shape[:2], mode='bilinear', align_corners=False
        )[0].permute(1, 2, 0)
        found.append(
            Comparison(
                loss.name,
                loss.feature,
                image,
                Path(path).stem if path else described.get('sample_id', 'image'),
                ours,
                theirs,
            )
        )
    return found


def draw(rows: Sequence[Comparison], colours: SharedColours, path: Path) -> None:
    """Write the picture of one loss: a row per image of photo, the expert's map and ours."""
    figure = Figure(figsize=(8.4, 3.1 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), 3, squeeze=False)
    titles = ('photo', f'expert: {rows[0].loss}', f'ours: {rows[0].feature}, projected')
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=11, fontweight='bold')
    for line, row in zip(grid, rows):
        scores = row.scores()
        cells = '{}x{} cells of {} channels'.format(*row.ours.shape)
        agreement = f'cosine {scores["cosine"]:.2f}, centred {scores["centred"]:.2f}'
        extent = (0, row.image.shape[1], row.image.shape[0], 0)
        line[0].imshow(row.image, extent=extent)
        line[1].imshow(colours(row.theirs), extent=extent, interpolation='nearest')
        line[2].imshow(colours(row.ours), extent=extent, interpolation='nearest')
        for axes, text in zip(line, (row.name, cells, agreement)):
            axes.set(xticks=[], yticks=[], xlabel=text)
    figure.savefig(path)


def _numbered(rows: Sequence[Comparison]) -> list[Comparison]:
    """The same rows with a name of its own for each: folders may hold images of one name."""
    seen: Counter = Counter()
    named = []
    for row in rows:
        seen[row.name] += 1
        number = seen[row.name]
        named.append(replace(row, name=f'{row.name}_{number}') if number > 1 else row)
    return named


def visualize_distillation(
    cfg: Config, checkpoint: str, out: str | Path, images: int = 4, split: str = 'test'
) -> dict[str, dict[str, dict[str, float]]]:
    """Write ``LOSS.png`` (all images) and ``LOSS/IMAGE.png`` for every distillation loss.

    Args:
        cfg: Config of the training.
        checkpoint: A checkpoint of it, with the projections onto the experts.
        out: Folder to write to.
        images: How many different images.
        split: One of :data:`SPLITS`: the dataloader they come from.

    Returns:
        Agreement by loss and image, see :meth:`Comparison.scores`.

    Raises:
        ConfigError: There is nothing to compare, or no image.
        CheckpointError: The checkpoint cannot be used.
    """
    model = load_with_heads(cfg, checkpoint)
    found = [compare(model, sample) for sample in distinct_images(cfg, split, images)]
    if not found:
        raise ConfigError(f'`{split}_dataloader` has no sample with an image')
    folder, scores = Path(out), {}
    for rows in map(_numbered, zip(*found)):
        colours = SharedColours([row.theirs for row in rows])
        (folder / rows[0].loss).mkdir(parents=True, exist_ok=True)
        draw(rows, colours, folder / f'{rows[0].loss}.png')
        for row in rows:
            draw([row], colours, folder / row.loss / f'{row.name}.png')
        scores[rows[0].loss] = {row.name: row.scores() for row in rows}
    return scores
