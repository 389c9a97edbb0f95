"""Adapters with which public evaluation kits ask a checkpoint: VLMEvalKit and lmms-eval.

The kits are optional. ``vlmevalkit`` and ``lmms_eval`` of this package hold the adapters and import
their kit when they are used; benchmarks, scores and judges stay the kit's. See
``docs/vqa_evaluation.md``.
"""

from pixelsail_mm.evaluation.harnesses.answering import (
    KitError,
    Question,
    UnsupportedItemError,
    VQAAnswerer,
)
from pixelsail_mm.evaluation.harnesses.prompts import PROMPT_RULES, PromptRule, benchmark_prompt

__all__ = [
    'PROMPT_RULES',
    'KitError',
    'PromptRule',
    'Question',
    'UnsupportedItemError',
    'VQAAnswerer',
    'benchmark_prompt',
]
