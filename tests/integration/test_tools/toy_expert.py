"""A user's own expert, for test_cache_expert_features.py: quick to build, slow enough to kill."""

import time

import torch

from pixelsail_mm.models.experts import VisionExpert
from pixelsail_mm.registry import MODELS


@MODELS.register_module(force=True)
class ToyExpert(VisionExpert):
    """The image at a stride of 4 times ``factor``; takes ``seconds``."""

    def __init__(self, factor=1.0, seconds=0.0):
        self.factor = factor
        self.seconds = seconds

    def __call__(self, data_samples):
        time.sleep(self.seconds)
        return [
            self.factor * torch.as_tensor(sample.image[:, ::4, ::4], dtype=torch.float32)
            for sample in data_samples
        ]

    @classmethod
    def fingerprint_of(cls, factor=1.0, seconds=0.0):
        return dict(
            expert='ToyExpert', weights_sha256='none', feature=dict(factor=factor), preprocessing={}
        )

    def fingerprint(self):
        return self.fingerprint_of(self.factor)
