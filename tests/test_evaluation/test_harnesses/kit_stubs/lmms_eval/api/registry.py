"""Stub: list of models."""

from lmms_eval.api.model import lmms

MODEL_REGISTRY = {}


def register_model(*names):
    """Register a model under names."""

    def decorate(cls):
        assert issubclass(cls, lmms)
        MODEL_REGISTRY.update(dict.fromkeys(names, cls))
        return cls

    return decorate
