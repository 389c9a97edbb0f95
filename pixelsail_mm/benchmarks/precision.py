"""Compare a model's answers in several precisions, of the weights and of the computation."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

import pixelsail_mm.hf  # noqa: F401  (registers the Auto classes)
from pixelsail_mm.hf.export import export_hf
from pixelsail_mm.rendering import render

# Stored in, computed in; the first is what the others are compared with.
_CASES = (
    ('float32', 'float32'),
    ('float16', 'float32'),
    ('bfloat16', 'float32'),
    ('float16', 'float16'),
    ('bfloat16', 'bfloat16'),
)


def compare_precisions(
    cfg: Config, checkpoint: str | os.PathLike, image: str, text: str
) -> list[dict]:
    """Export a model in each precision and ask it the same question.

    Args:
        cfg: Config the model was trained with.
        checkpoint: Its weights, see :func:`~pixelsail_mm.hf.export.export_hf`.
        image: Image file.
        text: Question about it.

    Returns:
        For each case ``stored``, ``computed``, ``difference`` (largest of a logit of the question,
        against float32), ``same_text`` (bool) and ``iou`` (smallest of a mask; None where float32
        answers without masks, or with another number of them).
    """
    rows, reference = [], None
    with tempfile.TemporaryDirectory(prefix='pixelsail_precision_') as scratch:
        for stored, computed in _CASES:
            folder = Path(scratch) / stored
            if not folder.exists():
                export_hf(cfg, checkpoint, folder, stored, training_samples=0)
            answer = _ask(folder, computed, image, text)
            reference = reference or answer
            rows.append(dict(stored=stored, computed=computed, **_compare(reference, answer)))
    return rows


def report(rows: list[dict]) -> str:
    """The result of :func:`compare_precisions` as a Markdown table."""
    return render('benchmarks/precision.md.jinja', rows=rows)


@torch.no_grad()
def _ask(folder: Path, dtype: str, image: str, text: str) -> dict:
    """Logits of the question, ids of question and answer, masks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    inputs = AutoProcessor.from_pretrained(folder)(images=image, text=text)
    answer = model.generate(**inputs, do_sample=False, return_dict_in_generate=True)
    return dict(
        logits=model(**inputs).logits.float(),
        ids=answer.sequences[0].tolist(),
        masks=answer.masks[0],
    )


def _compare(reference: dict, answer: dict) -> dict:
    """One row of the table."""
    pairs = list(zip(reference['masks'], answer['masks']))
    comparable = pairs and len(reference['masks']) == len(answer['masks'])
    return dict(
        difference=(reference['logits'] - answer['logits']).abs().max().item(),
        same_text=reference['ids'] == answer['ids'],
        iou=min(_iou(one, other) for one, other in pairs) if comparable else None,
    )


def _iou(one: Tensor, other: Tensor) -> float:
    """IoU of two bool masks; empty masks are equal."""
    union = (one | other).sum().item()
    return (one & other).sum().item() / union if union else 1.0
