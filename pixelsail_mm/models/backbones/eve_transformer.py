"""The EVEv2 transformer: visual weights beside the textual ones in every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.eve_modules import ConvPatchEmbedding, add_visual_twins
from pixelsail_mm.models.backbones.single_transformer import SingleTransformer
from pixelsail_mm.registry import MODELS


@MODELS.register_module()
class EVETransformer(SingleTransformer):
    """Decoder in which image tokens have weights of their own (EVEv2; the 7B row of the paper).

    Projections of the attention, MLP and both layer norms of each layer exist twice; every token
    of an image, ``<|vis_cls|>`` and ``<vrow_sep>`` included, passes the visual ones, every other
    token the textual ones, and both attend to each other in one causal sequence with ordinary
    positions. Embeddings, final norm and head are shared. While decoding with a cache only the
    textual weights run. The visual weights start as copies of the textual ones, so that a model
    made from a text-only decoder computes what that decoder does.

    EVEv2's class and split embedding are rows of the token embedding here: ``<|vis_cls|>`` and
    ``<vrow_sep>``. The row of ``<vpatch>`` is added to all patches; it is zero in converted
    weights (:func:`~pixelsail_mm.checkpoints.conversion.eve_keys.eve_to_mm`).

    Goes with ``image_layout='rows'`` of ``BuildConversation`` and ``rule='area'`` of
    ``ResizeToGrid``.

    Args:
        llm: See :class:`SingleTransformer`; a family with ``q_proj`` ... ``o_proj`` (Qwen2, Llama,
            Mistral). Parameters are nearly twice those of the decoder.
        patch_size: Side of a patch in pixels, even.
        patch_channels: Width between the two convolutions of the patch embedding.
        **options: Other arguments of :class:`SingleTransformer`. ``rotary_layout`` makes no
            difference to ordinary positions.

    Raises:
        FileNotFoundError: The pre-trained weights are not there.
        ConfigError: A family without these parts, an odd ``patch_size``, an option that is not
            known or that only a linear patch embedding has.
    """

    image_layout = 'rows'
    #: Options of SingleTransformer that only a linear patch embedding has.
    refused_options = frozenset({'patch_embed_gain', 'patch_positions'})

    def __init__(
        self,
        llm: str | Mapping[str, Any],
        patch_size: int = 32,
        patch_channels: int = 1024,
        **options,
    ) -> None:
        known = signature(SingleTransformer).parameters.keys() - self.refused_options
        if options.keys() - known:
            raise ConfigError(
                'backbone: EVETransformer has no '
                f'{", ".join(sorted(options.keys() - known))}; remove or correct it'
            )
        super().__init__(llm, patch_size, **options)
        self.patch_embed = ConvPatchEmbedding(
            patch_size, patch_channels, self.hidden_size, self.llm.dtype
        )
        self._routing = add_visual_twins(self.llm.model.layers)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """See ``checkpoint_contexts`` of ``TokenRouting``."""
        return self._routing.checkpoint_contexts()

    @staticmethod
    def adapt_decoder(llm: nn.Module) -> None:
        """Give every layer visual weights, copies of the textual ones, in place."""
        add_visual_twins(llm.model.layers)

    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Patch embeddings ``(N,C)`` of normalised patches ``(N,3*p*p)``; ``grids`` is not used."""
        return self.patch_embed(patches)
