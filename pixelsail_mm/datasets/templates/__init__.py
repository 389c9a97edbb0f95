"""Question lists, answer lists and prompt templates, kept as data (``data/*.json``)."""

from pixelsail_mm.datasets.templates.loader import (
    IMAGE_MARKER,
    clean_question,
    load_templates,
    resolve_prompt_template,
    templates_version,
)

__all__ = [
    'IMAGE_MARKER',
    'clean_question',
    'load_templates',
    'resolve_prompt_template',
    'templates_version',
]
