"""Which of Transformers' settings of generation work with image blocks and masks."""

from __future__ import annotations

import copy
from typing import Any

from transformers import GenerationConfig
from transformers.generation import GenerationMode

from pixelsail_mm.errors import ConfigError

#: What generation could return and ours does not keep, and steps that pass by our attention mask.
_NOT_SUPPORTED = (
    'output_scores',
    'output_logits',
    'output_attentions',
    'output_hidden_states',
    'prefill_chunk_size',
    'guidance_scale',
)
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# Keys beyond those generated so far, as in a static cache, would be attended to.
_CACHES = (None, 'dynamic', 'dynamic_full')


def check_generation(settings: GenerationConfig, **overrides: Any) -> None:
    """Refuse what would be ignored or would give wrong answers.

    Args:
        settings: The settings; they are not changed.
        **overrides: Arguments of ``generate`` that overrule them or stand beside them.

    Raises:
        ConfigError: A setting is not supported; names it.
    """
    settings = copy.deepcopy(settings)
    extras = settings.update(**overrides)
    used = [key for key in _NOT_SUPPORTED if getattr(settings, key)]
    if used:
        raise ConfigError(f'generate: {", ".join(used)} not supported; forward gives logits')
    mode = settings.get_generation_mode(extras.get('assistant_model'))
    if mode not in _MODES:
        raise ConfigError(
            f'generate: {mode.value.replace("_", " ")} is not supported, greedy '
            'search and sampling are; leave out num_beams, penalty_alpha, '
            'assistant_model, prompt_lookup_num_tokens and the like'
        )
    if settings.cache_implementation not in _CACHES:
        raise ConfigError(
            f'generate: cache_implementation={settings.cache_implementation!r} is '
            'not supported; leave it out'
        )
