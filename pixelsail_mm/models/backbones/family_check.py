"""Refuse decoder families that would compute something else here than in transformers.

Our passes replace a decoder's attention and rotary embedding, and call its inner model and its head
themselves. What a family does besides (caps, scales, attention sinks, recurrent layers, ...) may
get lost on the way, and such a model trains without an error, to worse results. So a miniature of
each family is compared with transformers' own code once, when a model is built.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.backbones.attention import AttentionLayout, registered_attention
from pixelsail_mm.models.backbones.patch_decoder import (
    final_states,
    generate,
    replace_rotary,
    require_rotary,
    vocabulary_logits,
)
from pixelsail_mm.models.backbones.tiny_decoder import (
    VOCABULARY,
    WINDOW,
    tiny_config,
    tiny_model,
)

#: Largest difference of logits, which are of size 1.
TOLERANCE = 1e-4
#: For messages; the whole list is in docs/bases.md.
WORKING = ('one of those that work: qwen2, qwen3, llama, mistral, smollm3, olmo2, phi3, granite, '
           'cohere, gemma2, ...')
# A text of its own beside a padded one with an image: start, first and last token of the image.
_SPANS = [(0, 2, 8), (3, 3, 3)]
_LENGTH, _NEW = 11, 3

_passed: set[tuple] = set()


def check_family(llm: nn.Module, adapt: Callable[[nn.Module], None] | None = None,
                 causal_images: bool = False) -> None:
    """Compare a miniature of a decoder's family with transformers' own implementation.

    Compared are the logits of text, of a batch with an image block (against a dense mask), of
    answers continued with a cache, and of sequences beyond the window or the trained length of
    rotary scaling, which may be refused when they come. It runs on the CPU in float32, leaves the
    random state as it was, and is done once in a process for each kind of config.

    Args:
        llm: A stock decoder, as built; not changed.
        adapt: What else is done to the decoder before it is used; must not change its results.
        causal_images: Image tokens do not see later ones either.

    Raises:
        ConfigError: A result differs by more than ``TOLERANCE``, or the family cannot be compared.
    """
    require_rotary(llm)
    name = f'{llm.config.model_type} ({type(llm).__name__})'
    try:
        config = tiny_config(llm.config)
        key = (type(llm), config.to_json_string(use_diff=False), adapt, causal_images)
        if key in _passed:
            return
        with _quiet_surroundings():
            stock = tiny_model(type(llm), config, 'eager')
            ours = tiny_model(type(llm), config, registered_attention())
            replace_rotary(ours)
            if adapt is not None:
                adapt(ours)
            problem = _compare(ours, stock, causal_images)
    except ConfigError:
        raise
    except Exception as error:  # a family's code may raise anything; it is no use without this
        problem = (f'a small copy cannot be run for comparison ({type(error).__name__}: '
                   f'{first_line(error)})')
    if problem:
        raise ConfigError(f'backbone.llm: the family {name} does not work here: {problem}. Use '
                          f'{WORKING} (docs/bases.md)')
    _passed.add(key)


@contextmanager
def _quiet_surroundings():
    """Ordinary ones for small models, whatever a model is being built in."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # Setting a device makes every operation slow: only where another one is set.
        elsewhere = torch.get_default_device().type != 'cpu'
        # Random state of the CPU only: nothing here draws on another device.
        with torch.random.fork_rng(devices=[]), torch.no_grad(), (
                torch.device('cpu') if elsewhere else nullcontext()):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _compare(ours: nn.Module, stock: nn.Module, causal_images: bool) -> str | None:
    """What differs, None for nothing."""
    ids = torch.randint(0, VOCABULARY, (2, _LENGTH), generator=torch.Generator().manual_seed(1))
    layout = AttentionLayout(_SPANS, _LENGTH, causal_images=causal_images)
    text, plain = ids[:1], AttentionLayout([(0, 0, 0)], _LENGTH)
    differences = {
        'logits of text': _distance(_logits(ours, text, plain), stock(text).logits),
        'logits of a batch with an image block': _distance(
            _logits(ours, ids, layout), _dense_logits(stock, ids, layout), layout),
        'answers generated with a cache': _answers(ours, stock, ids, layout),
        f'text beyond its window of {WINDOW} tokens or rotary length': _long(ours, stock),
    }
    for part, difference in differences.items():
        if not difference <= TOLERANCE:
            return (f'{part} differ from those of transformers by {difference:.2g} '
                    f'(allowed {TOLERANCE:g})')
    return None


def _distance(ours: Tensor, stock: Tensor, layout: AttentionLayout | None = None) -> float:
    """Largest difference of logits ``(B,L,V)`` outside the padding."""
    difference = (ours - stock).abs().amax(-1)
    for row, (start, _, _) in enumerate(layout.spans if layout else ()):
        difference[row, :start] = 0
    return float(difference.max())


def _positions(layout: AttentionLayout, length: int) -> Tensor:
    """``(B,L)``: each row counts from its first valid token."""
    starts = torch.tensor([start for start, _, _ in layout.spans])
    return (torch.arange(length) - starts[:, None]).clamp(min=0)


def _logits(ours: nn.Module, ids: Tensor, layout: AttentionLayout) -> Tensor:
    embeds = ours.get_input_embeddings()(ids)
    positions = _positions(layout, ids.shape[1]).expand(3, -1, -1)
    return vocabulary_logits(ours, final_states(ours, embeds, positions, layout))


def _dense_logits(stock: nn.Module, ids: Tensor, layout: AttentionLayout) -> Tensor:
    """Stock logits ``(B,L,V)``: each row alone, without padding, with a dense mask."""
    rows = []
    for row, (start, first, end) in zip(ids, layout.spans):
        valid = row[None, start:]
        visible = torch.ones(2 * (valid.shape[1],), dtype=torch.bool).tril()
        visible[first - start:end - start, first - start:end - start] = True
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        logits = stock(inputs_embeds=stock.get_input_embeddings()(valid), use_cache=False,
                       attention_mask=mask[None, None]).logits
        rows.append(F.pad(logits, (0, 0, start, 0)))
    return torch.cat(rows)


def _answers(ours: nn.Module, stock: nn.Module, ids: Tensor, layout: AttentionLayout,
             new: int = _NEW, dense: bool = True) -> float:
    """Difference of what ``new`` cached steps compute from one stock pass over all tokens."""
    length = ids.shape[1]
    positions = _positions(layout, length).expand(3, -1, -1)
    new_ids, states = generate(
        ours, ours.get_input_embeddings()(ids), positions, layout, max_new_tokens=new,
        min_new_tokens=new, do_sample=False, pad_token_id=0)
    ours_logits = vocabulary_logits(ours, torch.cat(states, dim=1))
    whole = torch.cat([ids, new_ids], dim=1)
    expected = _dense_logits(stock, whole, layout) if dense else stock(whole).logits
    chosen = expected[:, length - 1:-1]
    lost = chosen.amax(-1) - chosen.gather(-1, new_ids[..., None])[..., 0]
    return max(_distance(ours_logits, expected, layout), float(lost.max()))


def _long(ours: nn.Module, stock: nn.Module) -> float:
    """Difference of sequences that are too long for a window, zero where ours refuses them."""
    ids = torch.randint(0, VOCABULARY, (1, 2 * WINDOW),
                        generator=torch.Generator().manual_seed(2))
    start = ids[:, :WINDOW - 2]
    differences = []
    for part in (
            lambda: _distance(_logits(ours, ids, AttentionLayout([(0, 0, 0)], ids.shape[1])),
                              stock(ids).logits),
            lambda: _answers(ours, stock, start, AttentionLayout([(0, 0, 0)], start.shape[1]),
                             new=4, dense=False)):
        try:
            differences.append(part())
        except ConfigError:  # said when it happens, not silently wrong
            continue
    return max(differences, default=0.0)
