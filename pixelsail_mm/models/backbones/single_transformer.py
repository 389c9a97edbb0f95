"""The single transformer: a stock Hugging Face decoder that also reads raw patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.backbones.attention import AttentionLayout, registered_attention
from pixelsail_mm.models.backbones.family_check import check_family
from pixelsail_mm.models.backbones.lora import (
    adapt_state,
    add_lora,
    merge_adapters,
    prepare_quantised_state,
    quantised,
    quantization_config,
)
from pixelsail_mm.models.backbones.new_tokens import (
    initialise_rows,
    separate_new_rows,
    untrained_ids,
)
from pixelsail_mm.models.backbones.patch_decoder import (
    final_states,
    generate,
    replace_rotary,
    vocabulary_logits,
)
from pixelsail_mm.models.backbones.sine_positions import sine_positions
from pixelsail_mm.registry import MODELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@MODELS.register_module()
class SingleTransformer(BaseModule):
    """Decoder-only transformer over patches and text (Pixel-SAIL paper, section 3).

    The decoder is a stock ``AutoModelForCausalLM`` with its rotary module replaced by
    :class:`PatchRotaryEmbedding` and its attention by :func:`image_block_attention`; the patch
    embedding is one linear layer. Which families of decoders work says ``docs/bases.md``; one that
    would compute something else here than in transformers is refused
    (:func:`~pixelsail_mm.models.backbones.family_check.check_family`).

    Args:
        llm: Hub name or folder of pre-trained weights, or a dict for random weights, e.g.
            ``dict(model_type='qwen2', hidden_size=896, ...)`` (keywords of the Hugging Face
            config class).
        patch_size: Side of a patch in pixels.
        vocab_size: Rows of the embedding, ``len(tokenizer)``; filled in by the meta-architecture.
            A pre-trained embedding of another size is resized (as the authors' release does).
        new_tokens: Names and ids of the tokens that the base may not know; filled in by the
            meta-architecture. In a pre-trained base, rows of those it does not know start as
            :func:`~pixelsail_mm.models.backbones.new_tokens.initialise_rows` says.
        dtype: Name of the parameter dtype, e.g. ``'bfloat16'``; None keeps float32.
        attn_implementation: Only ``'sdpa'``: flash-attention's kernels know no image block.
        gradient_checkpointing: Recompute activations in the backward pass.
        embedding_std: Standard deviation of the token embeddings of a model with random weights;
            None keeps the family's initialisation, which is far too faint at small width. An
            untied output head then starts at zero.
        patch_embed_gain: Factor on the initial weights of the patch embedding.
        rotary_layout: ``'sections'`` as in the authors' release, or ``'interleaved'``; see
            :class:`PatchRotaryEmbedding`.
        patch_positions: Factor on fixed sine features of each patch's place, which are added to its
            embedding (:func:`~pixelsail_mm.models.backbones.sine_positions.sine_positions`). None:
            rotary positions only, as published. They are relative, and a small model that starts
            from nothing does not find out from them where in the image a patch is.
        trust_remote_code: Passed to transformers; leave off unless you trust the repository.
        init_cfg: MMEngine initialisation config.
        lora: Freeze the decoder and adapt it, see
            :func:`~pixelsail_mm.models.backbones.lora.lora_config`.
        quantization: 4-bit weights of the frozen decoder, see
            :func:`~pixelsail_mm.models.backbones.lora.quantization_config`.
        new_token_rows: Rows of ``new_tokens`` as parameters of their own; None: with ``lora``.

    Raises:
        FileNotFoundError: The pre-trained weights are not there.
        ConfigError: Unknown attention implementation, or a family that is unknown or does not work.
        ConfigError: Bad settings of ``lora`` or ``quantization``.

    Attributes:
        untrained_ids: Ids whose rows no training has touched yet, as far as this model knows.
        image_layout: How an image is written, see
            :meth:`~pixelsail_mm.tokenization.SpecialTokens.image_ids`.
    """

    image_layout = 'block'

    def __init__(
        self,
        llm: str | Mapping[str, Any],
        patch_size: int = 16,
        vocab_size: int | None = None,
        dtype: str | None = None,
        attn_implementation: str = 'sdpa',
        gradient_checkpointing: bool = False,
        embedding_std: float | None = None,
        patch_embed_gain: float = 1.0,
        rotary_layout: str = 'sections',
        patch_positions: float | None = None,
        trust_remote_code: bool = False,
        init_cfg: dict | None = None,
        new_tokens: Mapping[str, int] | None = None,
        lora: Mapping | None = None,
        quantization: Mapping | None = None,
        new_token_rows: bool | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if attn_implementation != 'sdpa':
            raise ConfigError(
                f"backbone.attn_implementation={attn_implementation!r}: only 'sdpa' "
                'supports the image block; remove the key or set it to "sdpa"'
            )
        self.patch_size = patch_size
        self.patch_positions = patch_positions
        if quantization is not None and lora is None:
            raise ConfigError(
                'backbone.quantization: 4-bit weights cannot train; add '
                "backbone.lora=dict(type='LoraConfig', ...) or remove the key"
            )
        new_tokens = dict(new_tokens or {})
        config = _decoder_config(llm, vocab_size, trust_remote_code)
        check_family(config, self.adapt_decoder, trust_remote_code)
        self.llm, self.untrained_ids = _build_decoder(
            llm, config, vocab_size, dtype, trust_remote_code, new_tokens, quantization
        )
        if isinstance(llm, Mapping) and embedding_std is not None:
            _set_embedding_std(self.llm, embedding_std)
        replace_rotary(self.llm, rotary_layout)
        self.hidden_size: int = self.llm.config.hidden_size
        self.patch_embed = nn.Linear(
            3 * patch_size**2, self.hidden_size, bias=False, dtype=self.llm.dtype
        )
        with torch.no_grad():
            self.patch_embed.weight.mul_(patch_embed_gain)
        if gradient_checkpointing:
            self.llm.gradient_checkpointing_enable(
                dict(use_reentrant=False, context_fn=self.checkpoint_contexts)
            )
        if lora is not None:
            add_lora(self.llm, lora)
        if new_tokens and (lora is not None if new_token_rows is None else new_token_rows):
            separate_new_rows(self.llm, list(new_tokens.values()))
        prepare_quantised_state(self.llm)
        for module in self.llm.modules():
            module._is_hf_initialized = True  # else `init_weights` draws adapters and rows anew

    @staticmethod
    def adapt_decoder(llm: nn.Module) -> None:
        """Change the layers of a stock decoder to this transformer's, in place; here nothing."""

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of a layer's pass and of its repetition for gradient checkpointing; no-ops."""
        return nullcontext(), nullcontext()

    def merge(self) -> None:
        """Make this a plain decoder: LoRA and separate rows go into the weights, in place."""
        merge_adapters(self.llm)

    def adapt_state(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Fit weights of a backbone without ``lora`` and ``quantization`` to this one.

        Args:
            state: Weights of a whole model.
            prefix: What this module's keys begin with, with the last dot.
        """
        return adapt_state(self.llm, state, f'{prefix}llm.')

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Token embeddings ``(..., C)`` of int64 ids ``(...)``."""
        return self.llm.get_input_embeddings()(input_ids)

    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Patch embeddings ``(N,C)`` of normalised patches ``(N,3*p*p)``.

        Args:
            patches: Patches of all images of the batch, row by row.
            grids: Rows and columns of each image, (0, 0) without one.
        """
        embeddings = self.patch_embed(patches.to(self.patch_embed.weight.dtype))
        if self.patch_positions is None:
            return embeddings
        places = sine_positions(grids, self.hidden_size, embeddings.device)
        return embeddings + self.patch_positions * places.to(embeddings.dtype)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, layout: AttentionLayout
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: ``(B,L,C)`` with patches and prompts already added.
            position_ids: ``(3,B,L)`` int64.
            layout: Image spans of the batch.

        Returns:
            ``(B,L,C)``.
        """
        return final_states(self.llm, inputs_embeds, position_ids, layout)

    def logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits ``(...,V)`` of final states ``(...,C)``."""
        return vocabulary_logits(self.llm, states)

    def generate(
        self, inputs_embeds: Tensor, position_ids: Tensor, layout: AttentionLayout, **generation
    ) -> tuple[Tensor, list[Tensor]]:
        """Continue left-padded prompts; see :func:`patch_decoder.generate
        <pixelsail_mm.models.backbones.patch_decoder.generate>` for arguments and result.
        """
        return generate(self.llm, inputs_embeds, position_ids, layout, **generation)


@torch.no_grad()
def _set_embedding_std(llm: nn.Module, std: float) -> None:
    """Draw the token embeddings of a random decoder anew; an untied head starts at zero."""
    llm.get_input_embeddings().weight.normal_(std=std)
    if not llm.config.tie_word_embeddings:
        llm.lm_head.weight.zero_()


@contextmanager
def _readable_errors(llm: str):
    """Name the base whose files transformers cannot read."""
    if Path(llm).is_absolute() and not Path(llm).exists():
        raise FileNotFoundError(f'backbone.llm: folder {llm} does not exist')
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f'backbone.llm: weights {llm!r} could not be loaded '
            f'({first_line(error)}). Give a folder with config.json and safetensors, a '
            'hub name when a network is available, or a dict for random weights'
        ) from error


def _decoder_config(
    llm: str | Mapping[str, Any], vocab_size: int | None, trust_remote_code: bool
) -> PretrainedConfig:
    """The config of the decoder; that of pre-trained weights keeps their vocabulary."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    settings = dict(llm) if isinstance(llm, Mapping) else {}
    model_type = settings.pop('model_type', None)
    if isinstance(llm, Mapping) and model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f'backbone.llm: model_type={model_type!r} is unknown to transformers; '
            "use 'qwen2', 'qwen3', 'llama', 'mistral', ... (docs/bases.md)"
        )
    try:
        if not isinstance(llm, Mapping):
            with _readable_errors(llm):
                return AutoConfig.from_pretrained(llm, trust_remote_code=trust_remote_code)
        if vocab_size is not None:
            settings['vocab_size'] = vocab_size
        config = AutoConfig.for_model(model_type, **settings)
        # Token ids of a family's default config lie outside a small vocabulary.
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    except (ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(
            f'backbone.llm: transformers takes no such config: {first_line(error)}'
        ) from error
    return config


def _build_decoder(
    llm: str | Mapping[str, Any],
    config: PretrainedConfig,
    vocab_size: int | None,
    dtype: str | None,
    trust_remote_code: bool,
    new_tokens: Mapping[str, int],
    quantization: Mapping | None,
) -> tuple[nn.Module, list[int]]:
    """The decoder, with a row for every token, and the ids it has not seen in any training."""
    from transformers import AutoModelForCausalLM

    torch_dtype = getattr(torch, dtype) if dtype else torch.float32
    options = dict(
        attn_implementation=registered_attention(),
        dtype=torch_dtype,
        trust_remote_code=trust_remote_code,
    )
    four_bit = quantization and quantization_config(quantization, torch_dtype)
    if isinstance(llm, Mapping):
        try:
            model = AutoModelForCausalLM.from_config(config, **options)
        except ValueError as error:
            raise ConfigError(
                f'backbone.llm: transformers builds no such decoder: {first_line(error)}'
            ) from error
        return (quantised(model, four_bit) if four_bit else model), sorted(new_tokens.values())
    with _readable_errors(llm):
        model = AutoModelForCausalLM.from_pretrained(
            llm, **options, **dict(quantization_config=four_bit) if four_bit else {}
        )
    rows = model.get_input_embeddings().num_embeddings
    if vocab_size is None:
        return model, []
    if vocab_size != rows:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    untrained = untrained_ids(llm, new_tokens, rows, vocab_size)
    initialise_rows(model, untrained)
    return model, untrained
