"""Measure the time that caching adds to running an expert."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.models.experts.cache.build import Image, Job, cache_images
from pixelsail_mm.models.experts.cache.feature_shards import ShardStore
from pixelsail_mm.rendering import render
from pixelsail_mm.structures import PixelDataSample

IMAGE_SIZE = 512
_BLOCK = 10  # images between two looks at the clock


def small_sam2(size: int) -> dict[str, Any]:
    """SAM 2 with a small trunk, so that a thousand images take minutes on one core.

    Neck and output (256 channels at a stride of 16) are those of the real one: at 1024, the real
    size, maps of 2 MiB in fp16. The bytes per second of forward do not depend on the size, but the
    smaller it is the more the reading of images weighs. ``size`` is the side in pixels.
    """
    stride = size // 4
    return dict(
        type='SAM2Expert',
        size=size,
        model=dict(
            vision_config=dict(
                backbone_config=dict(
                    model_type='sam2_hiera_det_model',
                    hidden_size=8,
                    num_attention_heads=1,
                    blocks_per_stage=[1, 1, 1, 1],
                    embed_dim_per_stage=[8, 16, 32, 64],
                    num_attention_heads_per_stage=[1, 1, 1, 1],
                    image_size=[size, size],
                    window_size_per_stage=[8, 4, 16, 8],
                    global_attention_blocks=[],
                ),
                backbone_channel_list=[64, 32, 16, 8],
                fpn_hidden_size=256,
                backbone_feature_sizes=[[stride, stride], [stride // 2] * 2, [stride // 4] * 2],
            ),
            prompt_encoder_config=dict(hidden_size=256, image_size=size),
            mask_decoder_config=dict(hidden_size=256, mlp_dim=32, num_hidden_layers=1),
        ),
    )


def write_photos(folder: Path, count: int) -> list[Image]:
    """Write JPEG files of photo-like content (coarse and fine structure), 512x512."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = PILImage.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), PILImage.Resampling.BICUBIC))
        grain = rng.integers(-12, 13, (IMAGE_SIZE, IMAGE_SIZE, 1))
        path = folder / f'{i:06d}.jpg'
        PILImage.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        images.append(Image(path.name, str(path)))
    return images


def caching_cost(
    folder: Path,
    expert: dict[str, Any],
    images: int = 1000,
    device: str = 'cpu',
    max_seconds: float = float('inf'),
) -> dict[str, Any]:
    """Compare caching with the expert's bare forward, in turns of a few images.

    Bare: decoded images in memory -> processor and model -> maps. Caching: files -> hash, decode,
    the same, convert, write - the code that the tool runs. Both see the same images; who begins
    alternates, so that neither drifts of the machine nor warm caches favour one of them.

    Args:
        folder: Empty folder for images and features.
        expert: Config of the expert.
        images: Number of images.
        device: Where it runs.
        max_seconds: Stop after this time with what was measured until then.

    Returns:
        ``images`` measured, ``feature`` (shape of a map), ``bare_seconds``, ``caching_seconds``,
        their ``ratio``, ``bare_cpu_seconds``, ``caching_cpu_seconds`` (of all threads), their
        ``cpu_ratio`` (which other programs on the machine disturb less), ``gigabytes`` written,
        ``threads`` of PyTorch.
    """
    files = write_photos(folder / 'images', images)
    job = Job(expert, str(folder / 'features'), str(folder / 'images'), device=device)
    built = job.start()
    wall, cpu, done = Counter(), Counter(), 0
    [feature] = built([_decoded(files[0])])
    end = time.monotonic() + max_seconds
    while done < images and time.monotonic() < end:
        block = files[done : done + _BLOCK]
        samples = [_decoded(file) for file in block]
        turns = dict(
            bare=partial(_bare, built, samples), caching=partial(cache_images, job, built, block)
        )
        for name in sorted(turns, reverse=done // _BLOCK % 2):
            start, cpu_start = time.perf_counter(), time.process_time()
            turns[name]()
            wall[name] += time.perf_counter() - start
            cpu[name] += time.process_time() - cpu_start
        done += len(block)
    if len(ShardStore(job.out)) != done:
        raise RuntimeError(f'{len(ShardStore(job.out))} of {done} features are in the cache')
    return dict(
        images=done,
        feature=list(feature.shape),
        bare_seconds=wall['bare'],
        caching_seconds=wall['caching'],
        ratio=wall['caching'] / wall['bare'],
        bare_cpu_seconds=cpu['bare'],
        caching_cpu_seconds=cpu['caching'],
        cpu_ratio=cpu['caching'] / cpu['bare'],
        gigabytes=sum(file.stat().st_size for file in Path(job.out).iterdir()) / 1e9,
        threads=torch.get_num_threads(),
    )


def _decoded(file: Image) -> PixelDataSample:
    sample = PixelDataSample(metainfo=dict(sample_id=file.name, img_path=file.path))
    with PILImage.open(file.path) as image:
        sample.image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return sample


def _bare(expert: VisionExpert, samples: list[PixelDataSample]) -> None:
    for sample in samples:
        [feature] = expert([sample])
    if feature.device.type == 'cuda':
        torch.cuda.synchronize()


def report(result: dict[str, Any]) -> str:
    """Readable table of the figures."""
    return render('benchmarks/expert_cache.txt.jinja', **result)
