"""Time and arithmetic of training and prediction at one fixed size."""

from __future__ import annotations

import time
from statistics import median
from timeit import timeit

import torch

from pixelsail_mm.registry import MODELS
from pixelsail_mm.rendering import render
from pixelsail_mm.testing.tiny_models import byte_tokenizer, collate, make_sample, tiny_model_config

IMAGE_PATCHES, PATCH, TEXT_TOKENS, SEGS = (24, 24), 16, 115, 5


def reference_config(tokenizer) -> dict:
    """Model of 7.4 M parameters: hidden 256, 6 layers, 8 heads / 2 kv, 12,544 points, S 256."""
    llm = dict(
        model_type='qwen2',
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_theta=1e6,
        tie_word_embeddings=False,
        vocab_size=358,
    )
    mask_head = dict(type='SegTokenMaskHead', embed_channels=256, num_points=12544)
    return tiny_model_config(tokenizer, llm, PATCH, mask_head=mask_head)


def matmul_peak(seconds: float, size: int = 2048) -> float:
    """Best float32 matrix-product rate of this machine now, in FLOP/s."""
    a, b = torch.randn(2, size, size)
    best, end = float('inf'), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timeit(lambda: torch.mm(a, b), number=1))
    return 2 * size**3 / best


def run_benchmark(repeats: int = 7, threads: int = 2) -> dict[str, float]:
    """Measure one training step and one prediction.

    Peak and step are measured alternately, so that a machine that slows down slows both; the
    ratio is taken pair by pair.

    Args:
        repeats: Timed runs after one warm-up.
        threads: CPU threads of torch.

    Returns:
        Seconds (median and best), FLOPs of forward+backward by torch's counter, the peak of
        float32 matrix products and the share of it reached.
    """
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = MODELS.build(reference_config(byte_tokenizer()))
    sample = make_sample(
        model.tokens, IMAGE_PATCHES, SEGS, patch_size=PATCH, text_length=TEXT_TOKENS
    )
    batch = model.data_preprocessor(collate([sample]))

    def step():
        model.zero_grad()
        sum(model(**batch, mode='loss').values()).backward()

    model.train()
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    pairs = [(matmul_peak(0.5), timeit(step, number=1)) for _ in range(repeats)]
    ratios = [flops / seconds / peak for peak, seconds in pairs]
    model.eval()
    prompt = make_sample(
        model.tokens, IMAGE_PATCHES, 0, patch_size=PATCH, text_length=TEXT_TOKENS + SEGS
    )
    prompt[0]['labels'].fill_(-100)
    data = collate([prompt])

    def predict():
        prepared = model.data_preprocessor(data)
        model.predict(**prepared, max_new_tokens=16, min_new_tokens=16)

    predict()
    predictions = [timeit(predict, number=1) for _ in range(repeats)]
    times = [seconds for _, seconds in pairs]
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        tokens=batch['inputs']['input_ids'].shape[1],
        threads=threads,
        train_seconds=median(times),
        train_seconds_best=min(times),
        train_flops=flops,
        peak_flops=max(peak for peak, _ in pairs),
        share_of_peak=median(ratios),
        share_of_peak_best=max(ratios),
        predict_seconds=median(predictions),
        predict_seconds_best=min(predictions),
    )


def report(result: dict[str, float]) -> str:
    """Readable table of :func:`run_benchmark`'s result."""
    return render('benchmarks/step.txt.jinja', **result)
