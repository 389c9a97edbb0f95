"""Count the parameters and the memory of a config's model, without weights and data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.heads.names import head_attribute
from pixelsail_mm.rendering import render
from pixelsail_mm.type_names import type_name

#: ZeRO stages with what they share out among the processes.
ZERO_STAGES = {
    0: (),
    1: ('optimizer',),
    2: ('optimizer', 'gradients'),
    3: ('optimizer', 'gradients', 'weights'),
}
# Parts in the order of the table, by the longest prefix of a parameter's name that fits.
_PARTS = {
    'backbone.llm.model.embed_tokens': 'token embedding',
    'backbone.llm.lm_head': 'output head',
    'backbone.llm': 'transformer',
    'backbone.patch_embed': 'patch embedding',
    'prompt_injector': 'prompt injector',
    'neck': 'upsampler',
}
_LORA_PART = 'LoRA'
#: Said in the place of a size: DeepSpeed cannot share out bitsandbytes' layers.
NO_ZERO3 = 'not with 4-bit weights'
DISTILLATION = 'distillation (training only)'
# Bytes per parameter. bfloat16: gradients too; AdamW keeps float32 weights and two moments. A 4-bit
# weight takes half a byte and its share of one float32 scale for 64 of them (bitsandbytes).
_BYTES = {
    'bfloat16': dict(weights=2, gradients=2, optimizer=12),
    'float32': dict(weights=4, gradients=4, optimizer=8),
}
_FOUR_BIT = 0.5 + 4 / 64


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a config's model.

    Attributes:
        parts: Parameters by part; a tensor that two parts share counts in the first.
        trainable: Parameters that training moves, distillation's included.
        four_bit: Parameters held in 4 bits (QLoRA).
        precision: ``'bfloat16'`` or ``'float32'``, in which the model trains.
        vocabulary: Rows of the token embedding.
        image_tokens: Tokens of a square image of the largest size (see ``image_size``).
        image_size: (height, width) in pixels that such an image has for the model.
        schedule: Length, batch and learning rate in words.
    """

    parts: dict[str, int]
    trainable: int
    four_bit: int
    precision: str
    vocabulary: int
    image_tokens: int
    image_size: tuple[int, int]
    schedule: str

    @property
    def total(self) -> int:
        """Parameters of the model as it is used, without what only training has."""
        return sum(self.parts.values()) - self.parts.get(DISTILLATION, 0)

    def training_state(self, stage: int = 0, processes: int = 1) -> float:
        """Memory in GiB that weights, gradients and AdamW's state take in each process.

        Activations, experts and buffers of the libraries come on top.

        Args:
            stage: ZeRO stage; 0 shares nothing out.
            processes: Number of processes (GPUs).
        """
        size = _BYTES[self.precision]
        plain = sum(self.parts.values()) - self.four_bit
        kinds = dict(
            weights=size['weights'] * plain + _FOUR_BIT * self.four_bit,
            gradients=size['gradients'] * self.trainable,
            optimizer=size['optimizer'] * self.trainable,
        )
        return (
            sum(
                value / (processes if kind in ZERO_STAGES[stage] else 1)
                for kind, value in kinds.items()
            )
            / 2**30
        )


def model_info(cfg: Any, tokenizer: str | None = None) -> ModelInfo:
    """Compute the facts of a config's model; it is built without memory (device ``meta``).

    Language models of the hub are built from the settings in the catalogue of
    :mod:`pixelsail_mm.downloads`, with as many rows as their tokenizer and ours need.

    Args:
        cfg: The config (``mmengine.Config``).
        tokenizer: Tokenizer folder to use for the vocabulary instead of the config's.

    Raises:
        ConfigError: The config has no model, or its language model or tokenizer is neither in the
            catalogue nor here.
    """
    if 'model' not in cfg:
        raise ConfigError('the config has no `model`; give one that trains a model')
    rows = _vocabulary(tokenizer or cfg.model.tokenizer)
    model = _build_without_memory(cfg.model.to_dict(), rows)
    four_bit = 0
    if cfg.model.backbone.get('quantization'):
        four_bit = _linear_weights(model.backbone.llm)
    half = cfg.model.backbone.get('dtype') == 'bfloat16' or type_name(
        cfg.get('optim_wrapper', {}).get('type')
    ) in ('AmpOptimWrapper', 'PixelAmpOptimWrapper')
    tokens, size = _image_tokens(cfg, getattr(model.backbone, 'image_layout', 'block'))
    return ModelInfo(
        parts=_count_parts(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        four_bit=four_bit,
        precision='bfloat16' if half else 'float32',
        vocabulary=rows,
        image_tokens=tokens,
        image_size=size,
        schedule=_schedule(cfg),
    )


def _vocabulary(tokenizer: Any) -> int:
    """Rows that the embedding gets: the tokenizer with Pixel-SAIL's tokens."""
    from pixelsail_mm.downloads import hub_architecture
    from pixelsail_mm.tokenization import TASK_TOKENS, VISION_TOKENS, build_tokenizer

    known = hub_architecture(tokenizer) if isinstance(tokenizer, str) else None
    if known:
        # All of the catalogue know the chat tokens, none knows the others.
        return known['tokenizer_length'] + len(VISION_TOKENS) + len(TASK_TOKENS)
    if isinstance(tokenizer, str) and not os.path.isdir(tokenizer):
        raise ConfigError(
            f'model.tokenizer={tokenizer!r} is neither in the catalogue '
            '(tools/misc/download.py --list) nor a folder here; name a folder with '
            '--tokenizer'
        )
    return len(build_tokenizer(tokenizer))


def _build_without_memory(model: dict[str, Any], rows: int) -> Any:
    """The model on torch's ``meta`` device: shapes, no numbers, no experts, no quantisation."""
    import torch
    from torch.overrides import TorchFunctionMode

    import pixelsail_mm.models  # noqa: F401  registers the parts
    from pixelsail_mm.registry import MODELS
    from pixelsail_mm.testing.tiny_models import byte_tokenizer

    backbone = dict(model['backbone'], vocab_size=rows, llm=_settings(model['backbone']['llm']))
    backbone.pop('quantization', None)
    distill = [dict(loss, expert=_no_expert) for loss in model.get('distill') or ()]
    # Number of rows is given: which tokenizer they belong to makes no difference to sizes.
    model = dict(model, backbone=backbone, distill=distill, tokenizer=byte_tokenizer())

    class NothingOnTheCPU(TorchFunctionMode):
        """Keep tensors on ``meta`` when the model asks for the CPU (rotary frequencies)."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(args[0] if args else None, 'is_meta', False):
                args = [
                    torch.device('meta') if isinstance(value, str) and value == 'cpu' else value
                    for value in args
                ]
            return function(*args, **(kwargs or {}))

    with torch.device('meta'), NothingOnTheCPU():
        return MODELS.build(model)


def _settings(llm: str | Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a decoder, without the rows of its embedding."""
    from pixelsail_mm.downloads import hub_architecture

    if not isinstance(llm, str):
        return dict(llm)
    known = hub_architecture(llm)
    if known:
        return {key: value for key, value in known['architecture'].items() if key != 'vocab_size'}
    if not os.path.isfile(os.path.join(llm, 'config.json')):
        raise ConfigError(
            f'model.backbone.llm={llm!r} is neither in the catalogue '
            '(pixelsail_mm/downloads/catalogue.yml, key `architecture`) nor a folder '
            'with config.json; add it there'
        )
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(llm)
    return {key: value for key, value in config.to_dict().items() if key != 'vocab_size'}


def _no_expert(data_samples: Any) -> None:
    """In the place of an expert, which is never a part of the model."""


def _count_parts(model: Any) -> dict[str, int]:
    heads = {head_attribute(name): f'{name} head' for name in model.head_names}
    parts = {**_PARTS, **heads, 'distill': DISTILLATION}
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = (
            _LORA_PART
            if '.lora_' in name
            else next(
                (part for prefix, part in parts.items() if name.startswith(prefix + '.')), 'other'
            )
        )
        counts[part] = counts.get(part, 0) + parameter.numel()
    order = [*parts.values(), _LORA_PART, 'other']
    return {part: counts[part] for part in order if part in counts}


def _linear_weights(llm: Any) -> int:
    """Weights that bitsandbytes turns into 4 bits: of all linear layers but the head."""
    from torch import nn

    return sum(
        module.weight.numel()
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and '.lora_' not in name and not name.startswith('lm_head')
    )


def _image_tokens(cfg: Any, layout: str) -> tuple[int, tuple[int, int]]:
    """Tokens of the largest square image, and its size in pixels."""
    import pixelsail_mm.datasets  # noqa: F401  registers the transforms
    from pixelsail_mm.registry import TRANSFORMS

    stages = [
        stage
        for stage in cfg.get('test_pipeline') or cfg.get('train_pipeline') or ()
        if 'patch_size' in stage
    ]
    if not stages:
        raise ConfigError(
            'neither `test_pipeline` nor `train_pipeline` has a stage with '
            '`patch_size`: there is no telling how large images become'
        )
    resize = TRANSFORMS.build(stages[0].to_dict())
    rows, columns = resize.grid(resize.max_size, resize.max_size)
    # <vision> patches </vision>, or <|vis_cls|> and an end to every row.
    around = 2 if layout == 'block' else 1 + rows
    return rows * columns + around, (rows * resize.patch_size, columns * resize.patch_size)


def _schedule(cfg: Any) -> str:
    length = cfg.get('train_cfg') or {}
    words = (
        f'{length["max_iters"]:,} iterations'
        if 'max_iters' in length
        else f'{length["max_epochs"]} epoch'
        if 'max_epochs' in length
        else 'not stated'
    )
    wrapper, loader = cfg.get('optim_wrapper', {}), cfg.get('train_dataloader', {})
    if 'optimizer' not in wrapper:
        return words
    return (
        f'{words}, batch {loader.get("batch_size", 1)} x accumulation '
        f'{wrapper.get("accumulative_counts", 1)} per process, '
        f'{wrapper["optimizer"]["type"]} {wrapper["optimizer"]["lr"]:g}'
    )


def report(info: ModelInfo, processes: int = 8) -> str:
    """Tables for a terminal, the ZeRO stages for this number of processes."""
    return render(
        'benchmarks/model_info.txt.jinja',
        info=info,
        processes=processes,
        size=_BYTES[info.precision],
        stages=ZERO_STAGES,
        no_zero3=NO_ZERO3,
    )
