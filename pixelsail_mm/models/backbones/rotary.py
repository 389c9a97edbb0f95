"""Two-dimensional rotary position embedding for patches and text."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchRotaryEmbedding(nn.Module):
    """Rotary embedding whose faster frequencies follow rows, the slower ones columns.

    Replaces ``model.rotary_emb`` of a Hugging Face decoder. Positions have three axes (t, h, w);
    of the ``D/2`` frequencies the first half is driven by h and the second by w, t is never used
    (sections ``[0, D/4, D/4]`` of the authors' release). On text h equals w, which makes it the
    ordinary rotary embedding.

    ``inv_freq`` is neither a parameter nor a buffer: a cast of the model to bfloat16 would round
    it, and rounding alone moves the logits by an error that grows with the position.

    Args:
        original: The decoder's own rotary module; its float32 ``inv_freq`` of shape ``(D/2,)``
            and ``attention_scaling`` are taken over.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.inv_freq = original.inv_freq.detach().to('cpu', torch.float32).clone()
        self.attention_scaling = float(getattr(original, 'attention_scaling', 1.0))
        self.row_frequencies = self.inv_freq.numel() // 2

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``x``.

        Args:
            x: Hidden states; only device and dtype are used.
            position_ids: ``(3,B,L)`` int64, or ``(B,L)`` for plain text.

        Returns:
            Two tensors ``(B,L,D)`` in the dtype of ``x``.
        """
        if position_ids.ndim == 2:
            position_ids = position_ids.expand(3, -1, -1)
        if self.inv_freq.device != x.device:
            self.inv_freq = self.inv_freq.to(x.device)
        rows, columns = position_ids[1:, ..., None].float().unbind(0)
        split = self.row_frequencies
        angles = torch.cat([rows * self.inv_freq[:split], columns * self.inv_freq[split:]], dim=-1)
        angles = torch.cat([angles, angles], dim=-1)
        scale = self.attention_scaling
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)
