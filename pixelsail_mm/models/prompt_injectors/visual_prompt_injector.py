"""Injection of visual prompts (masks, boxes, points as covered patches) into the sequence."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from pixelsail_mm.models.data_preprocessor import ModelInputs
from pixelsail_mm.models.every_rank import zero_of
from pixelsail_mm.registry import MODELS


@MODELS.register_module()
class VisualPromptInjector(BaseModule):
    """Early fusion: add a projection of the ``<PromptK>`` embedding to the patches it covers.

    ``embed(<vpatch>) + patch + proj(embed(<PromptK>))``; patches without a prompt add nothing
    (Pixel-SAIL paper, "visual prompt injection").

    Args:
        hidden_size: Channels C; filled in by the meta-architecture.
        init_gain: Factor on the initial weights of the projection. A model trained from scratch
            overlooks a prompt that is faint next to the patch embeddings.
        project: False adds the embedding itself, without ``proj`` (EVEv2 variant of the authors'
            release, whose projection exists but is not used).
        init_cfg: MMEngine initialisation config.
    """

    def __init__(
        self,
        hidden_size: int,
        init_gain: float = 1.0,
        project: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.proj = None
        if not project:
            return
        self.proj = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.proj.weight.mul_(init_gain)

    def forward(
        self, embeds: Tensor, patches: Tensor, prompts: Tensor, inputs: ModelInputs
    ) -> Tensor:
        """Inject.

        Args:
            embeds: ``(B,L,C)`` token embeddings with patch embeddings already added.
            patches: ``(N,C)`` patch embeddings of the batch (not used here).
            prompts: ``(15,C)`` embeddings of ``<Prompt0>`` ... ``<Prompt14>``.
            inputs: Batch of the data preprocessor; ``vp_token_indices`` ``(B,L)`` holds K >= 0 on
                covered patches and a negative number elsewhere.

        Returns:
            ``(B,L,C)``.
        """
        table = prompts if self.proj is None else self.proj(prompts)
        prompt_of = inputs['vp_token_indices'].flatten()
        rows = torch.nonzero(prompt_of >= 0).squeeze(1)
        added = table[prompt_of[rows]]
        flat = embeds.flatten(0, 1).index_add(0, rows, added.to(embeds.dtype))
        if rows.numel() == 0:
            flat = flat + zero_of(table).to(embeds.dtype)
        return flat.view_as(embeds)


@MODELS.register_module()
class PooledPromptInjector(BaseModule):
    """Plain baseline: ``<PromptK>`` in the text becomes the mean of the patches it covers.

    This is the baseline that the paper compares with. Prompt tokens that cover no patch keep
    their own embedding.

    Args:
        hidden_size: Accepted, like ``init_gain``, so that both injectors are built alike; the
            baseline has no weights.
        init_gain: See ``hidden_size``.
        init_cfg: MMEngine initialisation config.
    """

    def __init__(
        self, hidden_size: int | None = None, init_gain: float = 1.0, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)

    def forward(
        self, embeds: Tensor, patches: Tensor, prompts: Tensor, inputs: ModelInputs
    ) -> Tensor:
        """Replace prompt tokens; arguments as in :meth:`VisualPromptInjector.forward`."""
        batch, _, channels = embeds.shape
        count = prompts.shape[0]
        prompt_of, patch_of = inputs['vp_token_indices'], inputs['vision_patch_indices']
        row, column = torch.nonzero(prompt_of >= 0, as_tuple=True)
        slots = row * count + prompt_of[row, column]
        sums = patches.new_zeros(batch * count, channels).index_add(
            0, slots, patches[patch_of[row, column]]
        )
        sizes = torch.bincount(slots, minlength=batch * count)
        matches = inputs['input_ids'][..., None] == inputs['prompt_token_ids']
        row, column, prompt = torch.nonzero(matches, as_tuple=True)
        slots = row * count + prompt
        covered = sizes[slots] > 0
        row, column, slots = row[covered], column[covered], slots[covered]
        means = sums[slots] / sizes[slots, None].to(sums.dtype)
        return embeds.index_put((row, column), means.to(embeds.dtype))
