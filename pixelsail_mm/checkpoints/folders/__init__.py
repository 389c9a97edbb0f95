"""Folders that hold a model: what a config, or ``config.json``, in them says."""
