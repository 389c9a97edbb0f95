"""Two-dimensional rotary position embedding for patches and text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError

LAYOUTS = ('sections', 'interleaved')


class PatchRotaryEmbedding(nn.Module):
    """Rotary embedding whose frequencies follow the rows and the columns of patches.

    Replaces ``model.rotary_emb`` of a Hugging Face decoder. Positions have three axes (t, h, w);
    half of the ``D/2`` frequencies are driven by h and half by w, t is never used. On text h equals
    w, which makes it the ordinary rotary embedding.

    ``inv_freq`` is neither a parameter nor a buffer: a cast of the model to bfloat16 would round
    it, and rounding alone moves the logits by an error that grows with the position.

    Args:
        original: The decoder's own rotary module; its float32 ``inv_freq`` of shape ``(D/2,)``
            and ``attention_scaling`` are taken over, and whether a frequency turns channels i and
            i + D/2 (Llama) or 2i and 2i + 1 (Cohere).
        layout: ``'sections'``: the faster half of the frequencies follows rows, the slower half
            columns (sections ``[0, D/4, D/4]`` of the authors' release, needed for their weights).
            ``'interleaved'``: the frequencies take turns, so that columns are told apart as well as
            rows (as in Qwen3-VL's interleaved variant); a dozen columns hardly turn the slower
            half, and a model that starts from nothing then sees shapes by rows only.

    Attributes:
        limit: Positions for which the frequencies hold; None for any. ``dynamic`` and ``longrope``
            scaling take others for a longer sequence, which keys in a cache could not follow.

    Raises:
        ConfigError: Unknown ``layout``, or the original is of neither form.
    """

    def __init__(self, original: nn.Module, layout: str = 'sections') -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ConfigError(f'backbone.rotary_layout={layout!r}: use one of {list(LAYOUTS)}')
        if not hasattr(original, 'inv_freq'):  # one for each type of layer
            raise ConfigError('its rotary embedding has another form')
        original = _with_numbers(original)
        self.inv_freq = original.inv_freq.detach().to('cpu', torch.float32).clone()
        self.attention_scaling = float(getattr(original, 'attention_scaling', 1.0))
        self.neighbours = _turns_neighbours(original)
        self.limit = _position_limit(original)
        count = self.inv_freq.numel()
        numbers = torch.arange(count, device='cpu')
        self.follows_rows = numbers % 2 == 0 if layout == 'interleaved' else numbers < count // 2

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``x``.

        Args:
            x: Hidden states; only device and dtype are used.
            position_ids: ``(3,B,L)`` int64, or ``(B,L)`` for plain text.

        Returns:
            Two tensors ``(B,L,D)`` in the dtype of ``x``.

        Raises:
            ConfigError: A position beyond ``limit``.
        """
        if position_ids.ndim == 2:
            position_ids = position_ids.expand(3, -1, -1)
        if self.limit is not None and (longest := int(position_ids.max()) + 1) > self.limit:
            raise ConfigError(
                f'{longest} positions: the base model scales its rotary frequencies anew beyond '
                f'{self.limit}, which is not supported; shorten max_length or max_new_tokens'
            )
        if self.inv_freq.device != x.device:
            self.inv_freq = self.inv_freq.to(x.device)
            self.follows_rows = self.follows_rows.to(x.device)
        rows, columns = position_ids[1:, ..., None].float().unbind(0)
        angles = torch.where(self.follows_rows, rows, columns) * self.inv_freq
        if self.neighbours:
            angles = angles.repeat_interleave(2, dim=-1)
        else:
            angles = torch.cat([angles, angles], dim=-1)
        scale = self.attention_scaling
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)


def _with_numbers(original: nn.Module) -> nn.Module:
    """A rotary module, built anew where a model without memory has left it without numbers."""
    if not original.inv_freq.is_meta:
        return original
    with torch.device('cpu'):
        return type(original)(config=original.config)


@torch.no_grad()
def _turns_neighbours(original: nn.Module) -> bool:
    """Whether a rotary module writes each frequency twice in a row, not the row of them twice."""
    frequencies = original.inv_freq
    answer = original(
        frequencies.new_zeros(1, 1, 1),
        torch.ones(1, 1, dtype=torch.long, device=frequencies.device),
    )
    for neighbours, angles in (
        (False, torch.cat([frequencies, frequencies])),
        (True, frequencies.repeat_interleave(2)),
    ):
        cosines = angles.cos() * getattr(original, 'attention_scaling', 1.0)
        if (
            isinstance(answer, tuple)
            and answer[0].shape == (1, 1, len(angles))
            and torch.allclose(answer[0][0, 0].float(), cosines.float(), atol=1e-5)
        ):
            return neighbours
    raise ConfigError('its rotary embedding has another form')


def _position_limit(original: nn.Module) -> int | None:
    """Length up to which the frequencies of a rotary module stay as they are, None for ever.

    Rule of ``transformers.modeling_rope_utils.dynamic_rope_update``.
    """
    kind = getattr(original, 'rope_type', 'default')
    if 'dynamic' in kind:
        return original.max_seq_len_cached
    if kind == 'longrope':
        config = original.config
        return getattr(config, 'original_max_position_embeddings', config.max_position_embeddings)
    return None
