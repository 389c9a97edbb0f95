"""Reading of folders that hold a model: their ``config.py`` or ``config.json``."""
