"""What the tests of models share."""

import pytest


@pytest.fixture
def avx512bf16(request, monkeypatch):
    """What bitsandbytes sees in the CPU: with these instructions its layers pack their weights.

    Packing works on every CPU; computing with packed weights needs the instructions.
    """
    monkeypatch.setattr('bitsandbytes.nn.modules.has_avx512bf16', lambda: request.param)
