"""Refuse decoder families that would compute something else here than in transformers.

Our passes replace a decoder's attention and rotary embedding, and call its inner model and its head
themselves. What a family does besides (caps, scales, attention sinks, recurrent layers, ...) may
get lost on the way, and such a model trains without an error, to worse results. So a miniature of
each family is compared with transformers' own code once, before a model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.backbones.attention import (
    ATTENTION_NAME,
    AttentionLayout,
    registered_attention,
)
from pixelsail_mm.models.backbones.patch_decoder import (
    final_states,
    generate,
    replace_rotary,
    vocabulary_logits,
)
from pixelsail_mm.models.backbones.tiny_decoder import (
    SIZE_NAMES,
    VOCABULARY,
    WINDOW,
    tiny_config,
    tiny_model,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Largest difference of logits, which are of size 1.
TOLERANCE = 1e-4
#: For messages; the whole list is in docs/bases.md.
WORKING = (
    'one of those that work: qwen2, qwen3, llama, mistral, smollm3, olmo2, phi3, granite, '
    'cohere, gemma2, ...'
)
# Rows of different lengths: start, first and last token of the image.
_SPANS = [(0, 2, 8), (3, 3, 3), (2, 4, 9)]
_LENGTH, _NEW = 11, 3
# Sub-configs that are settings, not models.
_NO_MODELS = {'attn_config', 'ffn_config'}

_passed: set[tuple] = set()


class Misfit(NamedTuple):
    """Why a family does not work.

    Attributes:
        reason: The same on every machine; docs/bases.md lists it.
        detail: The size of a difference, or an error of transformers' code; may be empty.
    """

    reason: str
    detail: str = ''

    def __str__(self) -> str:
        return f'{self.reason} ({self.detail})' if self.detail else self.reason


def check_family(
    config: PretrainedConfig,
    adapt: Callable[[nn.Module], None] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse the family of a config if it does not work; see :func:`family_misfit`.

    A family that works is compared once in a process for each kind of config: one comparison takes
    less than a second.

    Raises:
        ConfigError: The family does not work, or ``adapt`` refuses it.
    """
    misfit = family_misfit(config, adapt, trust_remote_code)
    if misfit is not None:
        raise ConfigError(
            f'backbone.llm: the family {config.model_type} does not work here: '
            f'{misfit}. Use {WORKING} (docs/bases.md)'
        )


def family_misfit(
    config: PretrainedConfig,
    adapt: Callable[[nn.Module], None] | None = None,
    trust_remote_code: bool = False,
) -> Misfit | None:
    """Compare a miniature of a config's family with transformers' own implementation.

    Compared are the logits of text and of a batch with images, once with image blocks and once with
    images that are read causally, against dense masks; answers continued with a cache, of text and
    of both batches, whose rows differ in length; and sequences beyond the window or the trained
    length of rotary scaling, which may be refused when they come. It runs on the CPU in float32 and
    leaves the random state as it was.

    Args:
        config: Of a decoder; not changed.
        adapt: What else is done to the decoder before it is used; must not change its results.
        trust_remote_code: Run the code that the config names.

    Returns:
        What differs, None for a family that works.

    Raises:
        ConfigError: ``adapt`` refuses the family.
    """
    misfit = _form_misfit(config)
    if misfit is not None:
        return misfit
    try:
        kind = _decoder_class(config, trust_remote_code)
        tiny = tiny_config(config)
        key = (kind, tiny.to_json_string(use_diff=False), adapt)
        if key in _passed:
            return None
        with _quiet_surroundings():
            stock = tiny_model(kind, tiny, 'eager')
            ours = tiny_model(kind, tiny, registered_attention())
    except Exception as error:  # a family's code may raise anything; it is no use without this
        # Families that look it up in a list of their own, or say in Transformers 5 what they take.
        if error.args == (ATTENTION_NAME,) or 'does not support an attention' in str(error):
            return Misfit('its code takes no attention but its own')
        return Misfit('a small copy cannot be built for comparison', _named(error))
    with _quiet_surroundings():
        try:
            replace_rotary(ours)
        except ConfigError as error:
            return Misfit(str(error))
        if adapt is not None:
            adapt(ours)
        misfit = _compare(ours, stock)
    if misfit is None:
        _passed.add(key)
        return None
    return _layers_misfit(config) or misfit


def _form_misfit(config: PretrainedConfig) -> Misfit | None:
    """What a config says by its form, before anything is built: such models are not small."""
    parts = sorted(type(config).sub_configs.keys() - _NO_MODELS)
    if parts:
        return Misfit(
            'it is a model of several parts; use its text part where that is a family of its own',
            ', '.join(parts),
        )
    settings = config.to_dict()
    missing = [name for name in SIZE_NAMES if settings.get(name) is None]
    if missing:
        return Misfit(
            'its config is not that of a rotary decoder such as Llama', f'no {", ".join(missing)}'
        )
    return None


def _layers_misfit(config: PretrainedConfig) -> Misfit | None:
    """Name layers that are no attention: the reason behind whatever difference they make."""
    kinds = {
        kind
        for name in ('layer_types', 'layers_block_type')
        for kind in getattr(config, name, None) or ()
    }
    others = sorted(kind for kind in kinds if 'linear' in kind or 'attention' not in kind)
    if others:
        return Misfit(
            f'it has layers without attention ({", ".join(others)}), which read padding '
            'and know no image block'
        )
    return None


def _decoder_class(config: PretrainedConfig, trust_remote_code: bool) -> type[nn.Module]:
    """The class that ``AutoModelForCausalLM`` chooses."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    remote = (getattr(config, 'auto_map', None) or {}).get('AutoModelForCausalLM')
    if remote and trust_remote_code:
        return get_class_from_dynamic_module(remote, config.name_or_path)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _named(error: Exception) -> str:
    return f'{type(error).__name__}: {first_line(error)}'


@contextmanager
def _quiet_surroundings():
    """Ordinary ones for small models, whatever a model is being built in."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # Setting a device makes every operation slow: only where another one is set.
        elsewhere = torch.get_default_device().type != 'cpu'
        # Random state of the CPU only: nothing here draws on another device.
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            torch.device('cpu') if elsewhere else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _compare(ours: nn.Module, stock: nn.Module) -> Misfit | None:
    """What differs, None for nothing."""
    for part, measure in _parts(ours, stock):
        try:
            difference = measure()
        except Exception as error:
            return Misfit(f'{part} end in an error of its code', _named(error))
        if not difference <= TOLERANCE:
            return Misfit(
                f'{part} differ from those of transformers',
                f'by {difference:.2g}, allowed {TOLERANCE:g}',
            )
    return None


def _parts(ours: nn.Module, stock: nn.Module) -> Iterator[tuple[str, Callable[[], float]]]:
    """Name of each part of the comparison, and what gives the largest difference of its logits."""
    ids = torch.randint(
        0, VOCABULARY, (len(_SPANS), _LENGTH), generator=torch.Generator().manual_seed(1)
    )
    text, plain = ids[:1], AttentionLayout([(0, 0, 0)], _LENGTH)
    yield 'logits of text', lambda: _distance(_logits(ours, text, plain), stock(text).logits)
    yield 'answers to text', lambda: _answers(ours, stock, text, plain)
    for images, causal in (('an image block', False), ('causal images', True)):
        layout = AttentionLayout(_SPANS, _LENGTH, causal_images=causal)
        yield (
            f'logits of a batch with {images}',
            lambda layout=layout: _distance(
                _logits(ours, ids, layout), _dense_logits(stock, ids, layout), layout
            ),
        )
        yield (
            f'answers to a batch with {images}',
            lambda layout=layout: _answers(ours, stock, ids, layout),
        )
    yield (
        f'results of text beyond its window of {WINDOW} tokens or rotary length',
        lambda: _long(ours, stock),
    )


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
        visible[first - start : end - start, first - start : end - start] = True
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        logits = stock(
            inputs_embeds=stock.get_input_embeddings()(valid),
            use_cache=False,
            attention_mask=mask[None, None],
        ).logits
        rows.append(F.pad(logits, (0, 0, start, 0)))
    return torch.cat(rows)


def _answers(
    ours: nn.Module,
    stock: nn.Module,
    ids: Tensor,
    layout: AttentionLayout,
    new: int = _NEW,
    dense: bool = True,
) -> float:
    """Difference of what ``new`` cached steps compute from one stock pass over all tokens."""
    length = ids.shape[1]
    positions = _positions(layout, length).expand(3, -1, -1)
    new_ids, states = generate(
        ours,
        ours.get_input_embeddings()(ids),
        positions,
        layout,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    ours_logits = vocabulary_logits(ours, torch.cat(states, dim=1))
    whole = torch.cat([ids, new_ids], dim=1)
    expected = _dense_logits(stock, whole, layout) if dense else stock(whole).logits
    chosen = expected[:, length - 1 : -1]
    lost = chosen.amax(-1) - chosen.gather(-1, new_ids[..., None])[..., 0]
    return max(_distance(ours_logits, expected, layout), float(lost.max()))


def _long(ours: nn.Module, stock: nn.Module) -> float:
    """Difference of sequences that are too long for a window, zero where ours refuses them."""
    ids = torch.randint(0, VOCABULARY, (1, 2 * WINDOW), generator=torch.Generator().manual_seed(2))
    start = ids[:, : WINDOW - 2]
    differences = []
    for part in (
        lambda: _distance(
            _logits(ours, ids, AttentionLayout([(0, 0, 0)], ids.shape[1])), stock(ids).logits
        ),
        lambda: _answers(
            ours, stock, start, AttentionLayout([(0, 0, 0)], start.shape[1]), new=4, dense=False
        ),
    ):
        try:
            differences.append(part())
        except ConfigError:  # said when it happens, not silently wrong
            continue
    return max(differences, default=0.0)
