"""Cached features of experts: written once, read during training."""
