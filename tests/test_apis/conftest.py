"""A shipped checkpoint in miniature: folder of config, tokenizer and random weights."""

import pytest

CONFIG = """
model = {model!r}
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=8, max_size=64),
    dict(type='BuildConversation', tokenizer='tokenizer', generation=True),
    dict(type='PackPixelInputs'),
]
"""


@pytest.fixture(scope='session')
def shipped(tmp_path_factory):
    """Folder with ``config.py``, ``tokenizer/`` and ``model.safetensors``."""
    import torch

    from pixelsail_mm.engine.checkpoint import save_weights
    from pixelsail_mm.registry import MODELS
    from pixelsail_mm.testing.tiny_models import byte_tokenizer, tiny_model_config
    folder = tmp_path_factory.mktemp('shipped')
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / 'tokenizer')
    torch.manual_seed(0)
    model = MODELS.build(tiny_model_config(tokenizer))
    save_weights(model.state_dict(), folder / 'model.safetensors')
    (folder / 'config.py').write_text(CONFIG.format(model=tiny_model_config('tokenizer')))
    return folder


@pytest.fixture(scope='session')
def ask(shipped):
    """Inferencer on the random model."""
    from pixelsail_mm.apis import PixelSAILInferencer
    return PixelSAILInferencer(shipped, device='cpu')
