"""Stub: interfaces."""
