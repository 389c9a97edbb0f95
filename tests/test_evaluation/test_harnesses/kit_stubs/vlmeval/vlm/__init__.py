"""Stub: models."""
