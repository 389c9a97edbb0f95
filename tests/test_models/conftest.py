"""What the tests of models share."""

import pytest


@pytest.fixture(autouse=True, scope='module')
def own_cache_home(tmp_path_factory):
    """Sums of weight files are not to be remembered in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp('home')
        patch.setenv('XDG_CACHE_HOME', str(home))
        yield home


@pytest.fixture
def avx512bf16(request, monkeypatch):
    """What bitsandbytes sees in the CPU: with these instructions its layers pack their weights.

    Packing works on every CPU; computing with packed weights needs the instructions.
    """
    monkeypatch.setattr('bitsandbytes.nn.modules.has_avx512bf16', lambda: request.param)
