"""Pixel-SAIL as a Transformers model: ``from_pretrained``, ``generate``, ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizer
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput, can_return_tuple

from pixelsail_mm.apis.remarks import describe_empty
from pixelsail_mm.checkpoints.folders.configuration import PixelSAILConfig
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.batching import unpad_samples
from pixelsail_mm.notices import warn_once
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.tokenization import IGNORE_INDEX


@dataclass
class PixelSAILGenerateOutput(ModelOutput):
    """Output of :meth:`PixelSAILForCausalLM.generate`.

    Attributes:
        sequences: ``(B,L+T)`` int64, the prompt and the answer; a finished row ends with padding.
        masks: Per row bool ``(n,H,W)``, one mask for each ``[SEG]`` of the answer, at the size of
            ``original_sizes``; ``(0,0,0)`` without an image.
        mask_scores: Per row ``(n,)``, mean probability inside each mask.
        predictions: Per row what other heads predict: field ``pred_NAME`` as ``NAME``. None where
            there is no other head.
    """

    sequences: Tensor | None = None
    masks: Sequence[Tensor] | None = None
    mask_scores: Sequence[Tensor] | None = None
    predictions: Sequence[dict[str, Any]] | None = None


class PixelSAILForCausalLM(PreTrainedModel, GenerationMixin):
    """The meta-architecture ``PixelSAIL`` as ``self.model``.

    Weights have its names behind ``model.``. All of it stays on one device: masks need the states
    of the last layer beside the patches.

    Args:
        config: The config.
    """

    config_class = PixelSAILConfig
    base_model_prefix = 'model'
    main_input_name = 'input_ids'
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ['PixelSAIL']

    def __init__(self, config: PixelSAILConfig) -> None:
        super().__init__(config)
        # Transformers asks for a precision through the default one. Normalisation constants keep
        # theirs: rounded, they would shift every pixel.
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with _memory_for_constants():
                self.model = MODELS.build(config.model_settings(_SpecialTokenizer(config)))
        finally:
            torch.set_default_dtype(dtype)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        tied = self.model.backbone.llm._tied_weights_keys
        if isinstance(tied, Mapping):  # Transformers 5; before, the output head said it all
            self._tied_weights_keys = {
                f'model.backbone.llm.{head}': f'model.backbone.llm.{table}'
                for head, table in tied.items()
            }
        # Transformers 5 drops constants in no checkpoint and asks `_init_weights` for them again.
        self._constants = {
            module: {
                name: getattr(module, name).clone() for name in module._non_persistent_buffers_set
            }
            for module in self.model.modules()
            if module._non_persistent_buffers_set
        }
        # Only `from_pretrained` builds without memory; it draws what the checkpoint then lacks.
        drawn = not next(self.model.parameters()).is_meta
        for module in self.model.modules():
            module._is_hf_initialized = drawn
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw what a checkpoint lacks: as PyTorch does, or Transformers for its own modules."""
        for name, value in self._constants.get(module, {}).items():
            getattr(module, name).copy_(value)
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings."""
        return self.model.backbone.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.model.backbone.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Output head."""
        return self.model.backbone.llm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output head."""
        self.model.backbone.llm.set_output_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grids: Tensor | None = None,
        prompt_map: Tensor | None = None,
        labels: Tensor | None = None,
        answer_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """One pass over whole sequences; what the inputs are: :mod:`pixelsail_mm.hf.batching`.

        Args:
            input_ids: ``(B,L)``, padded on any side.
            attention_mask: None if nothing is padded.
            pixel_values: None for text only.
            image_sizes: See there.
            image_grids: See there.
            prompt_map: See there.
            labels: ``(B,L)``, -100 where nothing is to be learned; gives ``loss``, the mean over
                all other tokens. Losses of masks belong to training with ``tools/train.py``.
            answer_mask: Taken because the processor gives it; only ``generate`` uses it.
            original_sizes: Likewise.
            num_items_in_batch: Divisor of ``loss`` in place of the number of labels; ``Trainer``
                gives that of all accumulated batches.
            **kwargs: What PEFT and trainers pass to every decoder (``output_attentions``, ...),
                None or False. ``return_dict=False`` gives a tuple.

        Returns:
            ``loss`` (with labels) and ``logits`` ``(B,L,V)``, zero on padding.

        Raises:
            TypeError: An argument is not supported; names it.
        """
        unknown = [key for key, value in kwargs.items() if value is not None and value is not False]
        if unknown:
            raise TypeError(f'{type(self).__name__}.forward: {", ".join(unknown)} not supported')
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        targets = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        samples = unpad_samples(
            input_ids, attention_mask, targets, pixel_values, image_sizes, image_grids, prompt_map
        )
        inputs = self._preprocess(samples, None)['inputs']
        logits = self.model.backbone.logits(self.model.encode(inputs))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=inputs['labels'],
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        places = attention_mask.bool().to(logits.device)
        lengths = places.sum(1, keepdim=True)
        used = torch.arange(logits.shape[1], device=logits.device) < lengths
        placed = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        placed[places] = logits[used]
        return CausalLMOutput(loss=loss, logits=placed)

    def _preprocess(self, samples: list[dict], data_samples: list | None) -> dict:
        # Transformers moves parameters one by one, which the preprocessor does not notice.
        preprocessor = self.model.data_preprocessor.to(self.device)
        return preprocessor(dict(inputs=samples, data_samples=data_samples), False)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grids: Tensor | None = None,
        prompt_map: Tensor | None = None,
        answer_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Tensor | PixelSAILGenerateOutput:
        """Answer: text, and a mask for each ``[SEG]`` in it.

        Args:
            input_ids: ``(B,L)``, padded on the left as the processor does.
            attention_mask: See :mod:`pixelsail_mm.hf.batching`.
            pixel_values: See there.
            image_sizes: See there.
            image_grids: See there.
            prompt_map: See there.
            answer_mask: None without a forced beginning of the answer.
            original_sizes: Sizes of the masks; None for those of the resized images.
            generation_config: Settings; ``self.generation_config`` for those it does not set.
            **kwargs: Settings that overrule it (``max_new_tokens``, ``do_sample``,
                ``return_dict_in_generate``, ...), and ``streamer``, ``logits_processor``,
                ``stopping_criteria`` as for other models.

        Returns:
            ``(B,L+T)`` ids, or with ``return_dict_in_generate=True`` a
            :class:`PixelSAILGenerateOutput`, which has the masks.

        Raises:
            ValueError: See
                :func:`~pixelsail_mm.models.backbones.generation_settings.check_generation`.
        """
        settings, extras = self._prepare_generation_config(generation_config, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        forced = torch.zeros_like(input_ids) if answer_mask is None else answer_mask
        samples = unpad_samples(
            input_ids,
            attention_mask,
            torch.where(forced.bool(), input_ids, IGNORE_INDEX),
            pixel_values,
            image_sizes,
            image_grids,
            prompt_map,
        )
        if original_sizes is not None:
            sizes = original_sizes.tolist()
        else:
            sizes = [
                (0, 0) if sample['image'] is None else sample['image'].shape[1:]
                for sample in samples
            ]
        copies = range(settings.num_return_sequences)
        settings.num_return_sequences = 1
        batch = self._preprocess(
            [sample for sample in samples for _ in copies],
            [
                PixelDataSample(metainfo=dict(ori_shape=tuple(size)))
                for size in sizes
                for _ in copies
            ],
        )
        extras['generation_config'] = settings
        if settings.eos_token_id is not None:
            extras['eos_token_id'] = torch.as_tensor(settings.eos_token_id).flatten().tolist()
        answers = self.model.generate_answers(batch['inputs'], batch['data_samples'], extras)
        has_masks = 'pred_masks' in answers[0]  # a model may have other heads only
        for answer in answers if has_masks else ():
            for text in describe_empty(answer.pred_masks):
                warn_once(text)
        texts = nn.utils.rnn.pad_sequence(
            [answer.pred_token_ids for answer in answers],
            batch_first=True,
            padding_value=self.model.tokens.pad,
        )
        prompts = input_ids.repeat_interleave(len(copies), dim=0)
        sequences = torch.cat([prompts, texts.to(prompts.device)], dim=1)
        if not settings.return_dict_in_generate:
            return sequences
        further = [answer.further_predictions() for answer in answers]
        return PixelSAILGenerateOutput(
            sequences=sequences,
            masks=[answer.pred_masks for answer in answers] if has_masks else None,
            mask_scores=[answer.pred_scores for answer in answers] if has_masks else None,
            predictions=further if any(further) else None,
        )


def _memory_for_constants() -> AbstractContextManager:
    """Let parameters alone be without memory where Transformers 5 builds all of a model so.

    Constants (normalisation, frequencies) are in no checkpoint; nothing would fill them later.
    """
    if torch.get_default_device().type != 'meta':
        return nullcontext()
    from accelerate import init_empty_weights

    stack = ExitStack()
    stack.enter_context(torch.device('cpu'))
    stack.enter_context(init_empty_weights())
    return stack


class _SpecialTokenizer(PreTrainedTokenizer):
    """A tokenizer of the special tokens alone, so that a model needs its config and no more.

    Args:
        config: Names the tokens with their ids, and the id of padding.

    Raises:
        ConfigError: Padding is none of the special tokens.
    """

    def __init__(self, config: PixelSAILConfig) -> None:
        self._ids = dict(config.special_tokens)
        self._names = {number: token for token, number in self._ids.items()}
        if config.pad_token_id not in self._names:
            raise ConfigError(
                f'config.json of {config.name_or_path or "the model"}: pad_token_id '
                f'{config.pad_token_id} is not the id of one of special_tokens'
            )
        super().__init__(pad_token=self._names[config.pad_token_id])

    @property
    def vocab_size(self) -> int:
        """Number of tokens known here."""
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return dict(self._ids)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return [text]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._names.get(index, '')
