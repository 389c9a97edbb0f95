"""Weights on disk: reading, loading into a model, converting; ``checkpoint`` is the facade."""
