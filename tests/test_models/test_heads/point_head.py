"""A second head for tests: the centre of what ``[SEG]`` means, as shares of the image."""

import torch
from torch import nn

from pixelsail_mm.models.heads import SegTokenHead
from pixelsail_mm.models.necks.feature_maps import apply_per_pixel
from pixelsail_mm.registry import MODELS


@MODELS.register_module()
class PointHead(SegTokenHead):
    """Learns from ``gt_points`` ``(n,2)``, writes ``pred_points`` ``(n,2)``."""

    targets = ('gt_points',)
    losses = ('loss_point',)

    def __init__(self, in_channels, hidden_size, init_cfg=None):
        super().__init__(init_cfg)
        self.image_proj = nn.Linear(in_channels, 2)
        self.seg_proj = nn.Linear(hidden_size, 2)

    def project_images(self, maps):
        return apply_per_pixel(self.image_proj, maps)

    def forward(self, states, maps):
        segs = apply_per_pixel(self.seg_proj, states)
        return [(seg + image.mean((0, 1))).sigmoid() for seg, image in zip(segs, maps)]

    def loss(self, states, maps, samples):
        points = torch.cat(self(states, maps))
        truth = torch.cat([sample.gt_points for sample in samples])
        return dict(loss_point=(points - truth.to(points)).abs().mean())

    def predict(self, states, image_map, sample):
        sample.pred_points = states.new_zeros(0, 2)
        if image_map is not None:
            (sample.pred_points,) = self([states], [image_map])
