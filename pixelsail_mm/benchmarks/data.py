"""Speed of the data: pipeline, index of large annotation files, mask metric."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pixelsail_mm.rendering import render

IMAGE_SIZE = 512
# Shares of the full mix: LLaVA and captions, Osprey and other region data, referring sentences.
_SHARES = dict(llava=0.4, osprey=0.4, refcoco=0.2)
_REFS_PER_IMAGE = 5
_POOL = 512


def pipeline_rate(folder: Path, seconds: float = 10.0) -> dict[str, float]:
    """Samples per second of one core from files to packed tensors, at 512x512.

    A sample has an image, five referring expressions with masks, and a conversation about a marked
    region; image, masks and prompts come from files of a ShapesWorld drawn at that size.

    Args:
        folder: Where the images are drawn.
        seconds: How long to measure.
    """
    from pixelsail_mm.registry import DATASETS
    from pixelsail_mm.worlds.shapes_world import make_shapes_world

    root = folder / 'world'
    make_shapes_world(root, 'full', image_size=IMAGE_SIZE, counts=dict(train=32, val=1, test=1))
    reader = dict(data_root=str(root), data_prefix=dict(img_path='images'))
    pipeline = [
        dict(type='LoadImage'),
        dict(type='LoadMasks'),
        dict(type='LoadVisualPrompts'),
        dict(type='PromptTypeAugment'),
        dict(type='ResizeToGrid', patch_size=16),
        dict(type='BuildConversation', tokenizer=str(root / 'tokenizer')),
        dict(type='PackPixelInputs', keep_image=True),
    ]
    dataset = DATASETS.build(
        dict(
            type='MergedDataset',
            pipeline=pipeline,
            turns=[5, None],
            datasets=[
                dict(
                    reader,
                    type='RefCOCODataset',
                    ann_file='refcoco/instances.json',
                    split_file='refcoco/refs(unc).p',
                ),
                dict(
                    reader, type='OspreyDataset', ann_file='osprey/osprey_train.json', max_turns=3
                ),
            ],
        )
    )
    dataset[0]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += 1
        dataset[count]
    return dict(samples_per_second=count / (time.perf_counter() - start))


def write_annotations(folder: Path, records: int) -> dict[str, int]:
    """Write annotation files in the layouts of LLaVA, Osprey and RefCOCO, in the full mix's shares.

    Returns:
        Records per file; together there are ``records``.
    """
    rng = random.Random(0)
    counts = {name: round(share * records) for name, share in _SHARES.items()}
    (folder / 'images').mkdir(parents=True)
    _write_list(folder / 'llava.json', counts['llava'], [_llava(rng) for _ in range(_POOL)])
    _write_list(folder / 'osprey.json', counts['osprey'], [_osprey(rng) for _ in range(_POOL)])
    _write_refcoco(folder, counts['refcoco'], rng)
    return counts


def _write_list(path: Path, count: int, pool: list[dict]) -> None:
    texts = [json.dumps(entry) for entry in pool]
    with open(path, 'w') as file:
        file.write('[')
        for i in range(count):
            file.write((',' if i else '') + texts[i % len(texts)])
        file.write(']')


def _words(rng: random.Random, count: int) -> str:
    words = ('a', 'large', 'photo', 'person', 'standing', 'near', 'the', 'river')
    return ' '.join(rng.choice(words) for _ in range(count))


def _talk(rng: random.Random, turns: int, lead: str = '') -> list[dict]:
    said = []
    for _ in range(turns):
        said += [
            {'from': 'human', 'value': lead + _words(rng, 8) + '?'},
            {'from': 'gpt', 'value': _words(rng, 25) + '.'},
        ]
    return said


def _polygon(rng: random.Random) -> list[list[float]]:
    return [[round(rng.uniform(0, 480), 2) for _ in range(2 * rng.randint(10, 30))]]


def _llava(rng: random.Random) -> dict:
    return dict(
        id=f'{rng.getrandbits(48):012d}',
        image=f'coco/{rng.getrandbits(39):012d}.jpg',
        conversations=_talk(rng, 3),
    )


def _osprey(rng: random.Random) -> dict:
    return dict(
        file_name=f'{rng.getrandbits(39):012d}.jpg',
        height=480,
        width=640,
        annotation=[dict(segmentation=_polygon(rng)) for _ in range(2)],
        conversations=_talk(rng, 1, '<region1> or <region2>: '),
    )


def _write_refcoco(folder: Path, count: int, rng: random.Random) -> None:
    polygons = [_polygon(rng) for _ in range(_POOL)]
    images = [
        dict(id=i, file_name=f'{i:012d}.jpg', height=480, width=640)
        for i in range(-(-count // _REFS_PER_IMAGE))
    ]
    (folder / 'instances.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=[dict(id=i, segmentation=polygons[i % _POOL]) for i in range(count)],
            )
        )
    )
    refs = [
        dict(
            ref_id=i,
            ann_id=i,
            image_id=i // _REFS_PER_IMAGE,
            split='train',
            sentences=[dict(raw=_words(rng, 4))],
        )
        for i in range(count)
    ]
    (folder / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))


def index_configs(folder: Path) -> list[dict]:
    """Readers of what :func:`write_annotations` wrote, with an index cache."""
    common = dict(
        data_root=str(folder),
        data_prefix=dict(img_path='images'),
        index_cache=str(folder / 'cache'),
    )
    return [
        dict(common, type='LLaVADataset', ann_file='llava.json'),
        dict(common, type='OspreyDataset', ann_file='osprey.json'),
        dict(common, type='RefCOCODataset'),
    ]


def build_mix(folder: Path) -> dict[str, float]:
    """Build a mixture of :func:`index_configs` in this process.

    Returns:
        ``seconds``, ``cpu_seconds``, ``gigabytes`` (peak memory of this process),
        ``import_gigabytes`` (of it, before anything is built) and ``items``.
    """
    from pixelsail_mm.registry import DATASETS

    imported = _peak_gigabytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    mix = DATASETS.build(dict(type='MixtureDataset', datasets=index_configs(folder)))
    return dict(
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu_start,
        gigabytes=_peak_gigabytes(),
        import_gigabytes=imported,
        items=len(mix),
    )


def _peak_gigabytes() -> float:
    # Not getrusage: its figure outlives exec, so a child begins with the peak of its parent.
    peak = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return int(peak.group(1)) / 2**20


def prepare_cost(folder: Path, workers: int = 2) -> dict[str, float]:
    """Build the same index by ``tools/misc/build_index.py``, in several processes.

    Returns:
        ``seconds``, starts of processes and their imports included, and ``gigabytes``: the largest
        sum of the memory of all processes, seen ten times a second.
    """
    import psutil

    config = folder / 'config.py'
    config.write_text(
        'train_dataloader = '
        + repr(dict(dataset=dict(type='MixtureDataset', datasets=index_configs(folder))))
    )
    tool = Path(__file__).parents[2] / 'tools/misc/build_index.py'
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, str(tool), str(config), '--workers', str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            peak = max(
                peak,
                sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))),
            )
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f'{tool} failed with status {process.returncode}')
    return dict(seconds=time.perf_counter() - start, gigabytes=peak / 2**30, workers=workers)


def index_cost(folder: Path, records: int) -> dict[str, float]:
    """Time and memory of the index of ``records`` records, first from files, then from cache.

    Each is measured in a process of its own; last, from files again in two processes.
    """
    root = folder / 'annotations'
    write_annotations(root, records)
    code = (
        'import json, sys, pathlib; import pixelsail_mm.datasets; '
        'from pixelsail_mm.benchmarks.data import build_mix; '
        'print(json.dumps(build_mix(pathlib.Path(sys.argv[1]))))'
    )
    runs = []
    for _ in range(2):
        output = subprocess.check_output([sys.executable, '-c', code, str(root)], text=True)
        runs.append(json.loads(output.splitlines()[-1]))
    shutil.rmtree(root / 'cache')
    prepared = prepare_cost(root)
    size = sum(path.stat().st_size for path in root.iterdir() if path.is_file())
    return dict(
        index_records=records,
        index_items=runs[0]['items'],
        index_file_gigabytes=size / 2**30,
        index_seconds=runs[0]['seconds'],
        index_cpu_seconds=runs[0]['cpu_seconds'],
        index_gigabytes=runs[0]['gigabytes'],
        import_gigabytes=runs[0]['import_gigabytes'],
        prepare_workers=prepared['workers'],
        prepare_seconds=prepared['seconds'],
        prepare_gigabytes=prepared['gigabytes'],
        cached_seconds=runs[1]['seconds'],
        cached_gigabytes=runs[1]['gigabytes'],
    )


def metric_cost(masks: int = 1000, height: int = 480, width: int = 640) -> dict[str, float]:
    """Seconds that ``RefSegMetric`` takes for ``masks`` predicted masks, results included."""
    from pixelsail_mm.evaluation.metrics import RefSegMetric

    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:height, :width]
    samples = []
    for i in range(masks):
        (y, x, r), (v, u, s) = rng.uniform((60, 60, 20), (420, 580, 150), (2, 3))
        samples.append(
            dict(
                sample_id=f'{i}',
                dataset='benchmark',
                task='refseg',
                gt_masks=((rows - y) ** 2 + (cols - x) ** 2 < r * r)[None],
                pred_masks=((rows - v) ** 2 + (cols - u) ** 2 < s * s)[None],
            )
        )
    metric = RefSegMetric()
    start = time.perf_counter()
    for sample in samples:
        metric.process({}, [sample])
    metric.evaluate(len(samples))
    return dict(metric_masks=masks, metric_seconds=time.perf_counter() - start)


def report(result: dict[str, float]) -> str:
    """Readable table of the figures above, each with its target."""
    return render('benchmarks/data.txt.jinja', **result)
