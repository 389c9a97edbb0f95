"""Stub of VLMEvalKit: the interface of a model, for tests."""
