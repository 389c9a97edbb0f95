"""Answering: generation of text, and what the heads make of its ``[SEG]`` states."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelsail_mm.models.backbones.attention import AttentionLayout
from pixelsail_mm.models.data_preprocessor import ModelInputs
from pixelsail_mm.models.precision import as_weights_of
from pixelsail_mm.tokenization import IGNORE_INDEX

#: Metainfo, true where an answer comes from states that are NaN or infinite.
STATES_NOT_FINITE = 'states_not_finite'


class AnsweringMixin:
    """The part of the meta-architecture that answers; its other part reads and trains.

    Uses ``tokenizer``, ``tokens``, ``causal_images``, ``generation``, ``backbone``, ``heads`` and
    the steps ``embed``, ``patch_maps`` and ``head_features`` of
    :class:`~pixelsail_mm.models.pixel_sail.PixelSAIL`.
    """

    @torch.no_grad()
    def predict(self, inputs: ModelInputs, data_samples: list, **generation) -> list:
        """Answer every sample, see :meth:`generate_answers`.

        Args:
            inputs: Batch of the data preprocessor.
            data_samples: One per row.
            **generation: Override ``generation`` of the config.
        """
        return self.generate_answers(inputs, data_samples, self.generation | generation)

    def generate_answers(self, inputs: ModelInputs, data_samples: list, options: dict) -> list:
        """Generate answers for prompts of any lengths and write predictions into the samples.

        The prompt is encoded once with the attention of training, then tokens follow causally with
        a cache, which equals one pass with the training layout.

        Args:
            inputs: Batch of the data preprocessor. Labels other than -100 mark a forced answer
                prefix; its ``[SEG]`` tokens count like generated ones. ``[SEG]`` in questions and
                in earlier turns does not.
            data_samples: One per row; receive ``pred_text`` (with the forced prefix),
                ``pred_token_ids`` (new tokens) and the fields of each head, e.g. ``pred_masks``
                bool ``(n,H,W)`` and ``pred_scores`` ``(n,)``.
            options: Keywords of Hugging Face's ``generate``; ``max_new_tokens`` at least 1. A list
                ``eos_token_id`` replaces ``<|endoftext|>`` and ``<|im_end|>``, which end an answer.

        Returns:
            The data samples.
        """
        lengths = inputs['lengths']
        batch_length = inputs['input_ids'].shape[1]
        embeds = left_pad(self.embed(inputs), lengths)
        positions = torch.stack([left_pad(axis, lengths) for axis in inputs['position_ids']])
        spans = []
        for length, span in zip(lengths, inputs['image_spans']):
            pad = batch_length - length
            start, end = span or (0, 0)
            spans.append((pad, pad + start, pad + end))
        layout = AttentionLayout(
            spans, batch_length, embeds.device, causal_images=self.causal_images
        )
        options = dict(eos_token_id=self._stop_ids(), pad_token_id=self.tokens.pad) | options
        stops = options['eos_token_id']
        new_ids, states = self.backbone.generate(embeds, positions, layout, **options)
        prompt_states = torch.stack(
            [row.roll(length - batch_length, dims=0) for row, length in zip(states[0], lengths)]
        )
        new_states = torch.cat(states[1:], dim=1)
        features = self.head_features(self.patch_maps(prompt_states, inputs))
        for row, sample in enumerate(data_samples):
            answer = _until_stop(new_ids[row], stops)
            forced = inputs['labels'][row] != IGNORE_INDEX
            ids = torch.cat([inputs['input_ids'][row][forced], answer])
            hidden = torch.cat([prompt_states[row][forced], new_states[row, : len(answer)]])
            self._write_prediction(
                sample, ids, hidden, {name: maps[row] for name, maps in features.items()}, stops
            )
            sample.pred_token_ids = answer
            # Text and masks of such an answer look like any other.
            if not bool(torch.isfinite(prompt_states[row, : lengths[row]]).all()) or not bool(
                torch.isfinite(hidden).all()
            ):
                sample.set_metainfo({STATES_NOT_FINITE: True})
        return data_samples

    def _write_prediction(
        self,
        sample,
        ids: Tensor,
        states: Tensor,
        features: dict[str, Tensor | None],
        stops: list[int],
    ) -> None:
        """Fill one sample from its answer ``ids`` ``(T,)`` and their states ``(T,C)``."""
        text_ids = [token for token in ids.tolist() if token not in stops]
        sample.pred_text = self.tokenizer.decode(
            text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).strip()
        segs = states[ids == self.tokens.seg]
        for name, head in self.heads.items():
            feature = features[name]
            if feature is None or sample.get('ori_shape') is None:
                head.predict(as_weights_of(head, segs[:0]), None, sample)
            else:
                head.predict(as_weights_of(head, segs), feature, sample)

    def _stop_ids(self) -> list[int]:
        im_end = self.tokenizer.convert_tokens_to_ids('<|im_end|>')
        return sorted({self.tokens.eos, im_end})


def left_pad(tensor: Tensor, lengths: list[int]) -> Tensor:
    """Move the right padding of ``(B,L,...)`` rows to the left."""
    length = tensor.shape[1]
    return torch.stack([row.roll(length - valid, dims=0) for row, valid in zip(tensor, lengths)])


def _until_stop(ids: Tensor, stops: list[int]) -> Tensor:
    """Ids up to and including the first stop token; what follows is padding of the batch."""
    hits = torch.nonzero(torch.isin(ids, torch.tensor(stops, device=ids.device)))
    return ids[: int(hits[0]) + 1] if len(hits) else ids
