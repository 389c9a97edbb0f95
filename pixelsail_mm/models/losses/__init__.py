"""Losses that MMDetection does not have."""

from pixelsail_mm.models.losses.expert_distill_loss import ExpertDistillLoss

__all__ = ['ExpertDistillLoss']
