"""Patch embedding and visual weights that EVEv2 adds to a stock decoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.attention import AttentionLayout

# What has a visual twin in each decoder layer: EVEv2's "layernorm-self_attn-mlp".
ROUTED_PARTS = (
    'input_layernorm',
    'self_attn.q_proj',
    'self_attn.k_proj',
    'self_attn.v_proj',
    'self_attn.o_proj',
    'post_attention_layernorm',
    'mlp',
)


class ConvPatchEmbedding(nn.Module):
    """Two convolutions without overlap: pixels to quarters of a patch, GELU, quarters to a patch.

    Args:
        patch_size: Side p of a patch in pixels, even; 32 in EVEv2 (strides 16 and 2).
        channels: Width between the convolutions.
        hidden_size: Channels C of the transformer.
        dtype: Of the weights.

    Raises:
        ConfigError: ``patch_size`` is odd.
    """

    def __init__(
        self, patch_size: int, channels: int, hidden_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        if patch_size % 2:
            raise ConfigError(
                f'backbone.patch_size={patch_size}: must be even, the second '
                'convolution of the patch embedding joins 2x2 quarters of a patch'
            )
        half = patch_size // 2
        self.patch_size = patch_size
        self.quarters = nn.Conv2d(3, channels, half, stride=half, dtype=dtype)
        self.join = nn.Conv2d(channels, hidden_size, 2, stride=2, dtype=dtype)

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings ``(N,C)`` of patches ``(N,3*p*p)``, flattened (channel, row, column)."""
        pixels = patches.to(self.quarters.weight.dtype).view(
            -1, 3, self.patch_size, self.patch_size
        )
        return self.join(F.gelu(self.quarters(pixels))).flatten(1)


class _Rows:
    """Context in which a routing has the rows of an earlier pass; can be entered again."""

    def __init__(self, routing: TokenRouting) -> None:
        self._routing, self._rows = routing, routing.rows

    def __enter__(self) -> None:
        self._now, self._routing.rows = self._routing.rows, self._rows

    def __exit__(self, *error) -> None:
        self._routing.rows = self._now


class TokenRouting:
    """Which tokens of the running pass belong to which branch; shared by all layers.

    Every decoder layer sets it anew from the ``layout`` it is called with. A layer that is
    recomputed for gradient checkpointing routes as it did the first time; Transformers 5 recomputes
    without the hook (:meth:`checkpoint_contexts`).

    Attributes:
        rows: Indices into the flattened ``(B*L)`` tokens: of the text branch, of the visual branch,
            and the order that restores the sequence from both. None while decoding with a cache,
            when only the text branch runs.
    """

    def __init__(self) -> None:
        self.rows: tuple[Tensor, Tensor, Tensor] | None = None
        self._layout: AttentionLayout | None = None
        self._split: tuple[Tensor, Tensor, Tensor] | None = None

    def enter_layer(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """Forward pre-hook of a decoder layer."""
        states = args[0] if args else kwargs['hidden_states']
        layout = kwargs.get('layout')
        if layout is None or states.shape[1] != layout.length:
            self.rows = None
            return
        if layout is not self._layout:
            self._layout, self._split = layout, _split(layout)
        self.rows = self._split

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of ``torch.utils.checkpoint``: for the pass and for its repetition."""
        return nullcontext(), _Rows(self)


def _split(layout: AttentionLayout) -> tuple[Tensor, Tensor, Tensor]:
    visual = torch.zeros(len(layout.image_spans), layout.length, dtype=torch.bool)
    for row, (_, first, end) in enumerate(layout.image_spans):
        visual[row, first:end] = True
    text_rows, visual_rows = (
        torch.nonzero(chosen.flatten()).squeeze(1) for chosen in (~visual, visual)
    )
    restore = torch.argsort(torch.cat([text_rows, visual_rows]))
    return tuple(rows.to(layout.device) for rows in (text_rows, visual_rows, restore))


class RoutedModule(nn.Module):
    """A module for text tokens beside its twin for visual tokens; each token passes one of them.

    Both are called whenever a whole sequence is processed, also for no token at all: the weights
    then get a gradient of zero, and under ZeRO every process calls every module.

    Args:
        text: Module ``(...,C) -> (...,D)`` that treats tokens one by one; the twin starts as its
            copy.
        routing: Shared by all modules of a transformer.
    """

    def __init__(self, text: nn.Module, routing: TokenRouting) -> None:
        super().__init__()
        self.text = text
        self.visual = deepcopy(text)
        self._routing = routing

    def forward(self, states: Tensor) -> Tensor:
        """Tokens ``(B,L,C)`` to ``(B,L,D)``."""
        if self._routing.rows is None:
            return self.text(states)
        text_rows, visual_rows, restore = self._routing.rows
        tokens = states.flatten(0, 1)
        parts = self.text(tokens[text_rows]), self.visual(tokens[visual_rows])
        return torch.cat(parts)[restore].unflatten(0, states.shape[:2])


def add_visual_twins(layers: nn.ModuleList) -> TokenRouting:
    """Replace the routed parts of stock decoder layers, in place.

    Args:
        layers: Decoder layers of a Hugging Face model with the submodules ``ROUTED_PARTS``, called
            with ``layout=...``.

    Returns:
        What all layers are routed by.

    Raises:
        ConfigError: A layer lacks one of these submodules.
    """
    routing = TokenRouting()
    for layer in layers:
        for path in ROUTED_PARTS:
            parent, _, name = path.rpartition('.')
            try:
                owner = layer.get_submodule(parent)
                module = getattr(owner, name)
            except AttributeError as error:
                raise ConfigError(
                    f'backbone.llm: {type(layer).__name__} has no {path}; EVE needs '
                    'a decoder such as Qwen2, Llama or Mistral'
                ) from error
            setattr(owner, name, RoutedModule(module, routing))
        layer.register_forward_pre_hook(routing.enter_layer, with_kwargs=True)
    return routing
