"""A small model whose answers depend on image and question, and stubs of the evaluation kits."""

import sys
from pathlib import Path

import pytest

STUBS = Path(__file__).parent / 'kit_stubs'


@pytest.fixture(scope='session')
def talker(tmp_path_factory):
    """Folder of a random model that says something else for every input; its config samples."""
    from pixelsail_mm.testing.tiny_models import TINY_LLM, write_tiny_model

    llm = dict(TINY_LLM, tie_word_embeddings=False, initializer_range=0.5)
    generation = dict(max_new_tokens=4, do_sample=True, temperature=5.0)
    return write_tiny_model(tmp_path_factory.mktemp('talker'), llm, seed=2, generation=generation)


@pytest.fixture(scope='session')
def greedy_ask(talker):
    """Inferencer on that model, greedy."""
    from pixelsail_mm.apis import PixelSAILInferencer, init_model

    model = init_model(talker, device='cpu')
    model.generation = dict(max_new_tokens=4)
    return PixelSAILInferencer(model)


def _forget_kits():
    from pixelsail_mm.evaluation.harnesses import lmms_eval, vlmevalkit

    for adapter in (vlmevalkit, lmms_eval):
        adapter.adapter_class.cache_clear()
    for name in [name for name in sys.modules if name.split('.')[0] in ('vlmeval', 'lmms_eval')]:
        del sys.modules[name]


@pytest.fixture
def kit_stubs(monkeypatch):
    """Put the stubs of both kits where Python finds them."""
    _forget_kits()
    monkeypatch.syspath_prepend(str(STUBS))
    yield STUBS
    _forget_kits()


@pytest.fixture
def no_kits(monkeypatch):
    """As if neither kit were installed."""
    _forget_kits()
    for name in ('vlmeval', 'lmms_eval'):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    monkeypatch.undo()
    _forget_kits()
