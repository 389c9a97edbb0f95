"""A model in miniature, in a folder as users make them by hand."""

import pytest


@pytest.fixture(scope='session')
def shipped(tmp_path_factory):
    """Folder with ``config.py``, ``tokenizer/`` and ``model.safetensors``."""
    from pixelsail_mm.testing.tiny_models import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp('shipped'))


@pytest.fixture(scope='session')
def ask(shipped):
    """Inferencer on the random model."""
    from pixelsail_mm.apis import PixelSAILInferencer

    return PixelSAILInferencer(shipped, device='cpu')
