"""Stub: list of models."""

supported_VLM = {}
