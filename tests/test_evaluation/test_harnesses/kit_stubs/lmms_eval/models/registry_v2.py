"""Stub: descriptions of models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelManifest:
    """Where the class of a model is."""

    model_id: str
    simple_class_path: str = None


class ModelRegistry:
    """Descriptions by name."""

    def __init__(self):
        self.manifests = {}

    def register_manifest(self, manifest, *, overwrite=False):
        assert overwrite or manifest.model_id not in self.manifests
        self.manifests[manifest.model_id] = manifest
