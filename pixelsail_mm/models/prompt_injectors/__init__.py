"""Visual-prompt injectors."""

from pixelsail_mm.models.prompt_injectors.visual_prompt_injector import (
    PooledPromptInjector,
    VisualPromptInjector,
)

__all__ = ['PooledPromptInjector', 'VisualPromptInjector']
