"""Cost of weights on their way in: time of loading, memory of consolidating ZeRO-3 shards."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from timeit import timeit

import torch
from torch import nn

from pixelsail_mm.downloads import hub_architecture
from pixelsail_mm.rendering import render
from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config

_BASE = 'Qwen/Qwen2.5-0.5B'  # 494 M parameters, tied
_ORDINARY = 151_643  # tokens of its vocabulary that are not special
_BUFFER = 16 << 20


def build_model() -> nn.Module:
    """A Pixel-SAIL of random weights around a decoder of 0.5B, with as many tokens as Qwen2.5."""
    from pixelsail_mm.registry import MODELS

    llm = hub_architecture(_BASE)['architecture']
    tokenizer = byte_tokenizer([f'word{number}' for number in range(_ORDINARY - 256)])
    config = tiny_model_config(tokenizer, llm, patch_size=16)
    config['backbone']['vocab_size'] = llm['vocab_size']
    return MODELS.build(config)


def loading(model: nn.Module, folder: Path, rounds: int = 5) -> dict[str, float]:
    """Time to load a checkpoint into a built model of its precision, beside reading its file.

    The file is read in two ways: through one buffer of 16 MiB, where nothing is kept and the
    processor's cache takes part of the work; and into memory of its size, which is what a loader
    has to fill. All three run in turns, after one read that brings the file into the page cache;
    that memory has been touched before, as the model's has.

    Args:
        model: The model.
        folder: Where the checkpoint is written.
        rounds: How often each is timed; medians count.
    """
    from pixelsail_mm.checkpoints.checkpoint import load_weights, save_weights
    from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata

    dtype = str(next(model.parameters()).dtype).removeprefix('torch.')
    path = folder / f'{dtype}.safetensors'
    save_weights(model.state_dict(), path, vocabulary_metadata(model.tokenizer))
    size = path.stat().st_size
    buffer, memory = bytearray(_BUFFER), bytearray(size)
    actions = dict(
        streaming=lambda: _read(path, buffer),
        reading=lambda: _read(path, memory),
        loading=lambda: load_weights(model, path),
    )
    actions['reading']()
    times = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(timeit(action, number=1))
    path.unlink()
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        f'{dtype}_gigabytes': size / 1e9,
        **{f'{dtype}_{name}_seconds': value for name, value in seconds.items()},
        f'{dtype}_loading_to_streaming': seconds['loading'] / seconds['streaming'],
        f'{dtype}_loading_ratio': seconds['loading'] / seconds['reading'],
    }


def _read(path: Path, memory: bytearray) -> None:
    """Read a file to its end; memory smaller than the file is filled again and again."""
    view, filled = memoryview(memory), 0
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(view[filled:]):
            filled = (filled + count) % len(memory)


def write_zero3(
    folder: Path,
    shapes: dict[str, torch.Size],
    processes: int,
    aliases: dict[str, str] | None = None,
) -> None:
    """Write random weights as DeepSpeed's stage 3 does, optimizer state included.

    Args:
        folder: Folder to fill.
        shapes: Name -> shape of every trained parameter.
        processes: Number of shards.
        aliases: Names of tied parameters -> name in ``shapes``.
    """
    folder.mkdir(parents=True)
    part = sum(-(-shape.numel() // processes) for shape in shapes.values())
    for rank in range(processes):
        prefix = f'zero_pp_rank_{rank}_mp_rank_00'
        torch.save(
            dict(
                module={name: torch.empty(0) for name in shapes},
                buffer_names=[],
                mp_world_size=1,
                param_shapes=[shapes],
                shared_params=aliases or {},
                frozen_param_shapes=None,
                frozen_param_fragments=None,
            ),
            folder / f'{prefix}_model_states.pt',
        )
        generator = torch.Generator().manual_seed(rank)
        flat = torch.empty(part).uniform_(-0.1, 0.1, generator=generator)
        moments = dict(
            step=torch.tensor(1.0), exp_avg=torch.zeros(part), exp_avg_sq=torch.zeros(part)
        )
        torch.save(
            dict(
                optimizer_state_dict=dict(
                    zero_stage=3,
                    partition_count=processes,
                    fp32_flat_groups=[flat],
                    optimizer_state_dict=dict(state={0: moments}, param_groups=[]),
                )
            ),
            folder / f'{prefix}_optim_states.pt',
        )


def consolidation(model: nn.Module, folder: Path, processes: int = 4) -> dict[str, float]:
    """Peak memory of putting ZeRO-3 shards of a model together, as a share of its float32 size.

    Each way runs in a process of its own, which samples its anonymous and its whole resident
    memory (with mapped pages of files) every 2 ms. What it had before it began (PyTorch, and for
    loading a model the model) is subtracted from the peaks, and the model added again.

    Args:
        model: The model; its shapes count.
        folder: Where the shards are written (three times the model's size).
        processes: Number of shards.
    """
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    aliases = {'backbone.llm.lm_head.weight': 'backbone.llm.model.embed_tokens.weight'}
    size = 4 * sum(shape.numel() for shape in shapes.values())
    write_zero3(folder / 'zero', shapes, processes, aliases)
    result = dict(model_gigabytes=size / 1e9, shards=processes)
    for way, name in (('file', 'consolidation'), ('model', 'zero_loading')):
        command = [sys.executable, '-m', 'pixelsail_mm.benchmarks.checkpoints', way]
        output = subprocess.check_output([*command, str(folder / 'zero')], text=True)
        measured = json.loads(output.splitlines()[-1])
        held = size if way == 'model' else 0
        result[f'{name}_seconds'] = measured['seconds']
        result[f'{name}_ratio'] = (held + measured['anonymous']) / size
        result[f'{name}_resident_ratio'] = (held + measured['resident']) / size
    return result


def _memory() -> tuple[int, int]:
    """Anonymous and all resident memory of this process in bytes (Linux only)."""
    # Not psutil: it reads statm, whose figures lag behind by megabytes.
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    anonymous, resident = (int(lines[key].split()[0]) * 1024 for key in ('RssAnon', 'VmRSS'))
    return anonymous, resident


def _measure(action) -> dict[str, float]:
    """Run something; seconds, and how far memory rose above what it was before, in bytes."""
    before, samples, done = _memory(), [], threading.Event()

    def sample():
        while not done.wait(0.002):
            samples.append(_memory())

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        start = time.perf_counter()
        action()
        seconds = time.perf_counter() - start
    finally:
        done.set()
        watcher.join()
    samples.append(_memory())
    anonymous, resident = (max(column) - start for column, start in zip(zip(*samples), before))
    return dict(seconds=seconds, anonymous=anonymous, resident=resident)


def _child(way: str, folder: Path) -> None:
    torch.set_num_threads(1)
    from pixelsail_mm.checkpoints.checkpoint import load_weights
    from pixelsail_mm.checkpoints.conversion.rewrite import zero_to_safetensors

    if way == 'file':
        target = folder.parent / 'model.safetensors'
        print(json.dumps(_measure(lambda: zero_to_safetensors(folder, target))))
        target.unlink()
        return
    model = build_model()
    print(json.dumps(_measure(lambda: load_weights(model, folder))))


def report(result: dict[str, float]) -> str:
    """Figures of all benchmarks, merged, beside their targets."""
    return render('benchmarks/checkpoints.txt.jinja', result=result)


if __name__ == '__main__':
    _child(sys.argv[1], Path(sys.argv[2]))
