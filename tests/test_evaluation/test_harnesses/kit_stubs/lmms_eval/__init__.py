"""Stub of lmms-eval: the interface of a model, for tests."""
