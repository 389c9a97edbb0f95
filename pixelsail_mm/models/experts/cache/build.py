"""Compute features of an expert for all training images and write them into a cache."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from pixelsail_mm.datasets.manifest.image_list import training_images
from pixelsail_mm.errors import BadSampleError, ConfigError, UserError
from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.models.experts.cache.feature_shards import (
    ImageState,
    ShardStore,
    check_kind,
    create_cache,
    narrow,
    write_shard,
)
from pixelsail_mm.models.experts.cache.fingerprint import expert_fingerprint
from pixelsail_mm.models.experts.cache.image_names import Roots, image_name
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.type_names import type_name

_CHUNK = 16  # images of a shard: as many are computed again after a kill
_READ_AHEAD = 4
_POLL = 0.2  # seconds between two looks at the results of the workers


@dataclass(frozen=True)
class Image:
    """An image file and its name in the cache."""

    name: str
    path: str


@dataclass(frozen=True)
class Job:
    """Settings of one run that writes a cache.

    Attributes:
        expert: Config of the expert.
        out: Folder of the cache.
        image_root: What images are named relative to, see :func:`image_name`.
        dtype: ``'float16'``, ``'bfloat16'`` or ``'float32'``.
        device: ``'cpu'``, ``'cuda:N'`` or ``'cuda'`` (worker processes take the GPUs in turn).
        custom_imports: Entries of this name in the configs, for the user's own experts.
    """

    expert: dict[str, Any]
    out: str
    image_root: Roots
    dtype: str = 'float16'
    device: str = 'cpu'
    custom_imports: Sequence[Mapping[str, Any]] = ()

    def start(self, number: int = 0) -> VisionExpert:
        """Build the expert on the device of worker ``number``; make the cache if there is none.

        Raises:
            ConfigError: The cache holds features of another kind.
        """
        for imports in self.custom_imports:
            import_modules_from_strings(**imports)
        device = self.device
        if device == 'cuda':
            number += int(os.environ.get('LOCAL_RANK', 0))
            device = f'cuda:{number % torch.cuda.device_count()}'
        expert = MODELS.build(self.expert).to(torch.device(device))
        create_cache(self.out, expert.fingerprint(), self.dtype)
        return expert


@dataclass
class Outcome:
    """Numbers of cached, skipped and failed images.

    Attributes:
        written: Number of images whose features were computed now.
        found: Number of images whose features were there.
        skipped: What is wrong with each image that cannot be read.
        bytes: Bytes written.
    """

    written: int = 0
    found: int = 0
    skipped: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, other: Outcome) -> None:
        """Count the images of another outcome in."""
        self.written += other.written
        self.found += other.found
        self.skipped += other.skipped
        self.bytes += other.bytes


Progress = Callable[[Iterable[Outcome], int], Iterable[Outcome]]


def choose_expert(cfg: Mapping[str, Any], wanted: str | Config | None) -> dict[str, Any]:
    """Find the expert to run.

    Args:
        cfg: The whole config.
        wanted: Name or number of an entry of ``model.distill``, type of its expert (for a
            ``CachedExpert`` also of the one that it names as ``of``), or a loaded config that sets
            ``expert``. None takes the only entry there is.

    Returns:
        Config of the expert.

    Raises:
        ConfigError: There is none or several.
    """
    if isinstance(wanted, Config):
        expert = wanted.get('expert')
        if not isinstance(expert, Mapping):
            raise ConfigError(f"{wanted.filename}: must set expert = dict(type='SAM2Expert', ...)")
        return dict(expert)
    names = [
        [
            str(i),
            entry.get('name'),
            type_name(entry['expert']['type']),
            type_name((entry['expert'].get('of') or {}).get('type')),
        ]
        for i, entry in enumerate(cfg.get('model', {}).get('distill') or [])
    ]
    fitting = [i for i, known in enumerate(names) if wanted is None or wanted in known]
    if len(fitting) != 1:
        known = '; '.join(', '.join(filter(None, row)) for row in names) or 'none'
        raise ConfigError(
            f'--expert {wanted or "is missing"}: {len(fitting)} entries of '
            f'model.distill fit (there are: {known}); name one, or give a config '
            'file that sets expert = dict(...)'
        )
    return dict(cfg['model']['distill'][fitting[0]]['expert'])


def _choose_device(device: str) -> str:
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    known = re.fullmatch(r'cpu|cuda(?::(\d+))?', device)
    gpus = torch.cuda.device_count()
    if not known or (device != 'cpu' and int(known[1] or 0) >= gpus):
        raise ConfigError(
            f'--device {device}: use cpu, cuda or cuda:N; PyTorch sees {gpus} GPUs here'
        )
    return device


def make_job(
    cfg: Mapping[str, Any],
    expert: str | Config | None = None,
    out: str | None = None,
    image_root: Roots | None = None,
    dtype: str = 'float16',
    device: str = 'auto',
) -> Job:
    """Combine config and command line.

    Args:
        cfg: The whole config.
        expert: See :func:`choose_expert`.
        out: See :class:`Job`; None takes ``root`` of the config's ``CachedExpert``.
        image_root: See :class:`Job`; None takes that of the config's ``CachedExpert``.
        dtype: See :class:`Job`.
        device: See :class:`Job`; ``'auto'`` takes the GPUs if there are any.

    Raises:
        ConfigError: Something is missing, or the device is not there.
    """
    chosen = choose_expert(cfg, expert)
    if type_name(chosen['type']) == 'CachedExpert':
        out, image_root = out or chosen.get('root'), image_root or chosen.get('image_root')
        chosen = chosen.get('of')
        if chosen is None:
            raise ConfigError(
                'distill.expert.of is missing: the config says where the features '
                "are to be, but not whose; set of=dict(type='SAM2Expert', ...)"
            )
    for option, value in (('--out', out), ('--image-root', image_root)):
        if not value:
            raise ConfigError(
                f'{option} is missing; give it, or let the config have '
                "expert=dict(type='CachedExpert', root=..., image_root=..., "
                'of=dict(...))'
            )
    configs = [cfg, expert] if isinstance(expert, Config) else [cfg]
    imports = [dict(config['custom_imports']) for config in configs if config.get('custom_imports')]
    return Job(dict(chosen), str(out), image_root, dtype, _choose_device(device), imports)


def list_images(
    cfg: Mapping[str, Any], image_root: Roots, part: tuple[int, int] = (0, 1)
) -> list[Image]:
    """Images of the training data of a config.

    Args:
        cfg: The whole config.
        image_root: See :func:`image_name`.
        part: (i, n): every n-th image from the i-th on, for n machines or GPUs.

    Raises:
        ConfigError: There is no image, or one is outside of ``image_root``.
    """
    first, step = part
    paths = {image_name(path, image_root): path for path in training_images(cfg)}
    return [Image(name, path) for name, path in paths.items()][first::step]


def cache_features(
    job: Job,
    images: Sequence[Image],
    workers: int = 1,
    progress: Progress = lambda parts, total: parts,
) -> Outcome:
    """Compute the features of all images that the cache does not have.

    May be interrupted at any moment and run again; several may run at once on different images.

    Args:
        job: What to do.
        images: Images, each once.
        workers: Processes, each with an expert of its own; 1 uses this one.
        progress: Wraps the outcomes as they come; called with them and the number of images.

    Raises:
        ConfigError: The cache holds other features, features cannot be stored in the dtype, or a
            worker process died.
    """
    todo = _without_features(job, images)
    outcome = Outcome(found=len(images) - len(todo))
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    workers = min(workers, len(chunks))
    parts = _work(job, chunks) if workers < 2 else _in_processes(job, chunks, workers)
    for part in progress(parts, len(todo)):
        before = outcome.written
        outcome.add(part)
        if part.written and not before:
            _check_space(job.out, outcome, len(todo))
    return outcome


def _without_features(job: Job, images: Sequence[Image]) -> list[Image]:
    """Images that are not in the cache or have changed since; refuses a foreign cache early."""
    # First of all, since it refuses wrong arguments.
    expected = dict(expert_fingerprint(job.expert), dtype=job.dtype)
    if not check_kind(Path(job.out), expected):
        return list(images)
    store = ShardStore(job.out)
    return [image for image in images if not _is_done(store, image)]


def _is_done(store: ShardStore, image: Image) -> bool:
    try:
        return bool(store.is_current(image.name, image.path))
    except OSError:  # it will be counted among the unreadable ones
        return False


def _check_space(out: str, outcome: Outcome, total: int) -> None:
    needed = outcome.bytes / outcome.written * total - outcome.bytes
    free = shutil.disk_usage(out).free
    if needed > free:
        print_log(
            f'{out}: {needed / 1e9:.1f} GB more are needed for {total} images, but '
            f'{free / 1e9:.1f} GB are free; make room or use another --out. What is written '
            'until the disk is full stays valid',
            'current',
            level=30,
        )


def _work(job: Job, chunks: Sequence[list[Image]], number: int = 0) -> Iterator[Outcome]:
    """Build the expert and work off chunks of images."""
    if chunks:
        expert = job.start(number)
        for chunk in chunks:
            yield cache_images(job, expert, chunk)


def cache_images(job: Job, expert: VisionExpert, images: Sequence[Image]) -> Outcome:
    """Compute the features of images and write them as a shard, reading ahead meanwhile.

    What was computed is written whatever ends this, Ctrl-C included.

    Args:
        job: Says where features go.
        expert: What :meth:`Job.start` gave.
        images: Images.

    Returns:
        Images that cannot be read or decoded are among the skipped ones.
    """
    outcome, maps, states = Outcome(), {}, {}
    try:
        for image, loaded in _read_ahead(images):
            try:
                sample, states[image.name] = loaded.result()
            except (BadSampleError, OSError) as error:
                outcome.skipped.append(str(error))
                continue
            [feature] = expert([sample])
            maps[image.name] = narrow(image.name, feature, job.dtype)
            outcome.written += 1
    finally:
        outcome.bytes = write_shard(job.out, maps, states)
    return outcome


def _read_ahead(images: Iterable[Image]) -> Iterator[tuple[Image, Future]]:
    pending: deque[tuple[Image, Future]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for image in images:
            pending.append((image, reader.submit(_read, image)))
            if len(pending) > _READ_AHEAD:
                yield pending.popleft()
        yield from pending


def _read(image: Image) -> tuple[PixelDataSample, ImageState]:
    from pixelsail_mm.datasets.transforms import LoadImage

    state = ImageState.read(image.path)
    pixels = LoadImage().transform(dict(img_path=image.path))['img']
    sample = PixelDataSample(
        metainfo=dict(sample_id=image.name, img_path=image.path, ori_shape=pixels.shape[:2])
    )
    sample.image = torch.from_numpy(pixels).permute(2, 0, 1)
    return sample, state


def _in_processes(job: Job, chunks: Sequence[list[Image]], workers: int) -> Iterator[Outcome]:
    # Spawned: forked processes inherit locks of threads that are not there, and cannot use CUDA.
    found = get_context('spawn').SimpleQueue()
    # Blocked, Ctrl-C reaches nobody while the workers start; they let it through when they can end
    # without a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        running = spawn(
            _worker, (job, [chunks[i::workers] for i in range(workers)], found), workers, join=False
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        ended = False
        while not ended:
            ended = running.join(timeout=_POLL)
            while not found.empty():
                part = found.get()
                if isinstance(part, Exception):
                    raise part
                yield part
    except ProcessExitedException as error:
        raise ConfigError(
            'a worker process was killed, perhaps for lack of memory; all that was '
            'written is kept: run again, with fewer --workers'
        ) from error
    finally:
        for process in running.processes:
            process.terminate()
            process.join()


def _worker(number: int, job: Job, chunks: Sequence[Sequence[list[Image]]], found: Any) -> None:
    """A process: puts outcomes, or the error that a user can correct, into ``found``.

    It ends at once with Ctrl-C, and when its parent was killed, of which PyTorch tells it in the
    same way. Otherwise it would go on and hold its GPU.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    torch.set_num_threads(max(1, torch.get_num_threads() // len(chunks)))
    try:
        for part in _work(job, chunks[number], number):
            found.put(part)
    except UserError as error:
        found.put(error)
