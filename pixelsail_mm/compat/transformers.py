"""Differences between Transformers 4 and 5, one function for each."""

from __future__ import annotations


def image_processor_class(name: str) -> type:
    """Image processor of a model, the one that works on NumPy arrays where there are two.

    Transformers 5 calls that one ``NAMEPil`` and gives ``NAME`` to the one of torchvision, which
    Transformers 4 calls ``NAMEFast``. They resize differently, so features would.

    Args:
        name: E.g. ``'Mask2FormerImageProcessor'``.
    """
    import transformers

    for candidate in (f'{name}Pil', name, f'{name}Fast'):
        if hasattr(transformers, candidate):
            return getattr(transformers, candidate)
    raise ImportError(f'transformers has no {name}')
