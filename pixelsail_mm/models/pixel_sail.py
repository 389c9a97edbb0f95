"""The meta-architecture: wires backbone, injector, neck, heads and distillation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.attention import AttentionLayout
from pixelsail_mm.models.data_preprocessor import ModelInputs
from pixelsail_mm.models.every_rank import with_gradient, zero_of
from pixelsail_mm.models.generation import AnsweringMixin
from pixelsail_mm.models.heads import SegTokenHead
from pixelsail_mm.models.heads.names import MASK, head_attribute, head_configs, module_name
from pixelsail_mm.models.heads.target_watch import TargetWatch
from pixelsail_mm.models.precision import as_weights_of
from pixelsail_mm.models.trainable import train_only
from pixelsail_mm.registry import MODELS
from pixelsail_mm.tokenization import IGNORE_INDEX, SpecialTokens, build_tokenizer, new_tokens


@MODELS.register_module()
class PixelSAIL(AnsweringMixin, BaseModel):
    """Single transformer for pixel-grounded understanding (arXiv 2504.10465).

    Args:
        tokenizer: Tokenizer config (see :func:`~pixelsail_mm.tokenization.build_tokenizer`).
        backbone: Config of the transformer.
        prompt_injector: Config of the visual-prompt injector.
        neck: Config of the upsampler.
        mask_head: Short for ``heads=dict(mask=...)``.
        heads: Name -> config of the heads on ``[SEG]`` states, see
            :class:`~pixelsail_mm.models.heads.base.SegTokenHead`. The weights of head ``NAME`` are
            called ``NAME_head.*``, its losses ``NAME.loss*`` (those of ``mask``: ``loss*``).
        distill: Configs of expert-distillation losses (training only); ``[]`` for none.
        lm_loss_weight: Weight of the language loss in a batch without mask loss.
        lm_loss_weight_with_masks: Its weight in a batch with mask loss (0.1 in the release).
        lm_loss_weight_text_only: Factor on the language loss of tokens in samples without image;
            with a mixture's shares it sets how much of the loss keeps the language alive.
        generation: Defaults for ``predict``: ``max_new_tokens`` and other keywords of Hugging
            Face's ``generate``.
        data_preprocessor: Config of the data preprocessor.
        trainable: Names of the parts that train, e.g. ``['backbone.patch_embed', 'heads.box']``,
            see :func:`~pixelsail_mm.models.trainable.train_only`; None for all.
        init_cfg: MMEngine initialisation config.

    What follows from another part (``hidden_size``, ``in_channels``, ``patch_size``,
    ``vocab_size``, ``new_tokens``, ``image_layout``) is filled in, so that swapping a part is one
    line of config.

    Raises:
        ConfigError: There is no head, ``mask`` is given twice, or a name is none; two entries of
            ``distill`` have the same name, or one reads ``'neck'`` without a mask head.
    """

    def __init__(
        self,
        tokenizer: Any,
        backbone: dict,
        prompt_injector: dict,
        neck: dict,
        mask_head: dict | None = None,
        heads: Mapping[str, dict] | None = None,
        distill: Sequence[dict] = (),
        lm_loss_weight: float = 1.0,
        lm_loss_weight_with_masks: float = 0.1,
        lm_loss_weight_text_only: float = 1.0,
        generation: dict | None = None,
        data_preprocessor: dict | None = None,
        trainable: Sequence[str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        vocabulary = build_tokenizer(tokenizer)
        tokens = SpecialTokens.from_tokenizer(vocabulary)
        transformer = _build(
            backbone, vocab_size=tokens.vocab_size, new_tokens=new_tokens(vocabulary)
        )
        patch_size = transformer.patch_size
        image_layout = getattr(transformer, 'image_layout', 'block')
        preprocessor = dict(
            type='PixelDataPreprocessor',
            tokenizer=tokenizer,
            patch_size=patch_size,
            image_layout=image_layout,
        )
        super().__init__(MODELS.build(preprocessor | dict(data_preprocessor or {})), init_cfg)
        self.tokenizer = vocabulary
        self.tokens = tokens
        self.causal_images = image_layout == 'rows'
        self.lm_loss_weight = lm_loss_weight
        self.lm_loss_weight_with_masks = lm_loss_weight_with_masks
        self.lm_loss_weight_text_only = lm_loss_weight_text_only
        self.generation = dict(max_new_tokens=512, do_sample=False) | dict(generation or {})
        self.backbone = transformer
        width = self.backbone.hidden_size
        self.prompt_injector = _build(prompt_injector, hidden_size=width)
        self.neck = _build(neck, in_channels=width, patch_size=patch_size)
        named = head_configs(mask_head, heads)
        self.head_names = list(named)
        self._watch_targets = TargetWatch()
        for name, cfg in named.items():
            self.add_module(
                head_attribute(name),
                _build(cfg, in_channels=self.neck.out_channels, hidden_size=width),
            )
        self.distill = nn.ModuleList(
            _build(cfg, in_channels=self._width_of(_feature(cfg))) for cfg in distill
        )
        names = [loss.name for loss in self.distill]
        if len(set(names)) < len(names):
            raise ConfigError(
                f'model.distill: losses of one name would hide each other ({names}); '
                'give every entry its own `name`'
            )
        if any(_feature(cfg) == 'neck' for cfg in distill):
            self.mask_head.fold_projector = False  # the loss reads the projected features
        if trainable is not None:
            train_only(self, [module_name(part) for part in trainable])

    @property
    def heads(self) -> dict[str, SegTokenHead]:
        """The heads by their names."""
        return {name: getattr(self, head_attribute(name)) for name in self.head_names}

    def _width_of(self, feature: str) -> int | None:
        """Channels of the feature that a distillation loss reads; None for one it refuses."""
        if feature == 'neck' and MASK not in self.head_names:
            raise ConfigError(
                "model.distill: feature='neck' is what the mask head projects, and "
                "model.heads has no `mask`; add one, or use feature='backbone'"
            )
        return self.mask_head.embed_channels if feature == 'neck' else self.backbone.hidden_size

    def init_weights(self) -> None:
        """Apply each ``init_cfg``, except to a model with 4-bit weights: MMEngine would fail."""
        if all(weight.is_floating_point() for weight in self.parameters()):
            super().init_weights()

    def forward(self, inputs: ModelInputs, data_samples: list | None = None, mode: str = 'tensor'):
        """Run the model.

        Args:
            inputs: Batch of :class:`PixelDataPreprocessor`.
            data_samples: One :class:`PixelDataSample` per row; the ``targets`` of the heads are
                read in ``loss``.
            mode: ``'tensor'`` -> dict of raw outputs; ``'loss'`` -> dict of losses;
                ``'predict'`` -> the data samples with ``pred_text`` and the fields of the heads.

        Raises:
            ValueError: Unknown mode.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.tensor(inputs)
        raise ValueError(f"mode={mode!r}: use 'loss', 'predict' or 'tensor'")

    def embed(self, inputs: ModelInputs) -> Tensor:
        """Token, patch and prompt embeddings summed: ``(B,L,C)``."""
        # One look-up: each would have a dense gradient of the size of the whole table.
        ids = inputs['input_ids'], inputs['prompt_token_ids']
        embedded = self.backbone.embed_tokens(torch.cat([part.flatten() for part in ids]))
        tokens, prompts = (
            part.view(*shape.shape, -1)
            for part, shape in zip(embedded.split([part.numel() for part in ids]), ids)
        )
        pixels, grids = inputs['vision_patches'], inputs['grids']
        text_only = len(pixels) == 0
        if text_only:
            pixels, grids = pixels.new_zeros(1, pixels.shape[1]), [(1, 1)]
        patches = self.backbone.embed_patches(pixels, grids)
        if text_only:
            tokens = tokens + zero_of(patches).to(tokens.dtype)
        else:
            rows = _patch_rows(inputs)
            tokens = (
                tokens.flatten(0, 1).index_add(0, rows, patches.to(tokens.dtype)).view_as(tokens)
            )
        read = (as_weights_of(self.prompt_injector, part) for part in (tokens, patches, prompts))
        return self.prompt_injector(*read, inputs).to(tokens.dtype)

    def encode(self, inputs: ModelInputs) -> Tensor:
        """States ``(B,L,C)`` after the final norm."""
        spans = [(0, *(span or (0, 0))) for span in inputs['image_spans']]
        embeds = self.embed(inputs)
        layout = AttentionLayout(
            spans,
            embeds.shape[1],
            embeds.device,
            inputs.get('turn_ids'),
            causal_images=self.causal_images,
        )
        return self.backbone(embeds, inputs['position_ids'], layout)

    def patch_maps(self, states: Tensor, inputs: ModelInputs) -> list[Tensor | None]:
        """Patch states ``(h,w,C)`` per sample; None for text-only samples."""
        sizes = [rows * columns for rows, columns in inputs['grids']]
        patches = states.flatten(0, 1)[_patch_rows(inputs)].split(sizes)
        return [
            part.view(*grid, -1) if size else None
            for part, grid, size in zip(patches, inputs['grids'], sizes)
        ]

    def head_features(self, maps: list[Tensor | None]) -> dict[str, list[Tensor | None]]:
        """Maps ``(H,W,D)`` that each head reads, from patch states; None stays None."""
        present = [feature for feature in maps if feature is not None]
        if not present:
            return {name: list(maps) for name in self.head_names}
        upsampled = self.neck([as_weights_of(self.neck, feature) for feature in present])
        features = {}
        for name, head in self.heads.items():
            projected = iter(
                head.project_images([as_weights_of(head, feature) for feature in upsampled])
            )
            features[name] = [None if feature is None else next(projected) for feature in maps]
        return features

    def seg_states(self, states: Tensor, inputs: ModelInputs) -> list[Tensor]:
        """States ``(n,C)`` of the ``[SEG]`` tokens per sample."""
        is_seg = inputs['input_ids'] == self.tokens.seg
        return list(states[is_seg].split(is_seg.sum(1).tolist()))

    def tensor(self, inputs: ModelInputs) -> dict[str, Any]:
        """Raw outputs of one pass.

        Returns:
            ``logits`` ``(B,L,V)``, ``last_hidden_state`` ``(B,L,C)``, ``features`` (see
            :meth:`head_features`), ``seg_states`` (list of ``(n,C)``) and ``heads``: for each head
            the list of its outputs, None for text-only samples.
        """
        states = self.encode(inputs)
        features = self.head_features(self.patch_maps(states, inputs))
        segs = self.seg_states(states, inputs)
        outputs = {
            name: [
                None if feature is None else head([as_weights_of(head, seg)], [feature])[0]
                for seg, feature in zip(segs, features[name])
            ]
            for name, head in self.heads.items()
        }
        return dict(
            logits=self.backbone.logits(states),
            last_hidden_state=states,
            features=features,
            seg_states=segs,
            heads=outputs,
        )

    def loss(self, inputs: ModelInputs, data_samples: list) -> dict[str, Tensor]:
        """Losses of a batch: ``loss_lm``, those of the heads, ``loss_distill_*``."""
        states = self.encode(inputs)
        maps = self.patch_maps(states, inputs)
        segs = self.seg_states(states, inputs)
        self._watch_targets(
            self.heads, [sample for sample, seg in zip(data_samples, segs) if len(seg)]
        )
        rows = self._rows_with_targets(segs, maps, data_samples)
        learned = set().union(*rows.values())
        wants_all = any(loss.feature == 'neck' for loss in self.distill)
        used = [
            feature if wants_all or row in learned else None for row, feature in enumerate(maps)
        ]
        unused = all(feature is None for feature in used)
        stand_in = torch.zeros_like(states[:1, :1])
        if states.requires_grad:  # as the maps of other processes do
            stand_in = with_gradient(stand_in)
        features = self.head_features([stand_in] if unused else used)
        losses = {}
        for name, head in self.heads.items():
            found = self._head_losses(
                head, rows[name], segs, features[name], data_samples, stand_in=states[:1, 0]
            )
            prefix = '' if name == MASK else f'{name}.'
            losses.update({prefix + key: value for key, value in found.items()})
        weight = self.lm_loss_weight_with_masks if learned else self.lm_loss_weight
        losses['loss_lm'] = weight * self._lm_loss(states, inputs)
        # The stand-in belongs to no sample; `used` then has None for each.
        projected = used if unused else features.get(MASK)
        for loss in self.distill:
            source = projected if loss.feature == 'neck' else maps
            losses[f'loss_distill_{loss.name}'] = loss(source, data_samples)
        return losses

    @staticmethod
    def _head_losses(
        head: SegTokenHead,
        rows: list[int],
        segs: list[Tensor],
        features: list[Tensor | None],
        data_samples: list,
        stand_in: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of one head on the samples ``rows``; zeros if there are none."""
        if rows:
            found = head.loss(
                [as_weights_of(head, segs[row]) for row in rows],
                [features[row] for row in rows],
                [data_samples[row] for row in rows],
            )
            if found.keys() != set(head.losses):
                raise ConfigError(
                    f'{type(head).__name__}.loss gives {sorted(found)}, its `losses` names '
                    f'{sorted(head.losses)}: make them the same, also for batches without targets'
                )
            return found
        some = next(feature for feature in features if feature is not None)
        return head.no_loss([as_weights_of(head, stand_in)], [some])

    def _lm_loss(self, states: Tensor, inputs: ModelInputs) -> Tensor:
        """Next-token cross entropy; the vocabulary product runs on labelled positions only."""
        targets = inputs['labels'][:, 1:]
        labelled = targets != IGNORE_INDEX
        if not labelled.any():
            # Mean of nothing would be NaN and spread to every loss, as in the release.
            return zero_of(self.backbone.logits(states[:, :1]))
        logits = self.backbone.logits(states[:, :-1][labelled])
        losses = F.cross_entropy(logits.float(), targets[labelled], reduction='none')
        if self.lm_loss_weight_text_only != 1.0:
            text_only = torch.tensor(
                [span is None for span in inputs['image_spans']], device=losses.device
            )
            rows = torch.nonzero(labelled)[:, 0]
            losses = torch.where(text_only[rows], self.lm_loss_weight_text_only * losses, losses)
        return losses.mean()

    def _rows_with_targets(
        self, segs: list[Tensor], maps: list[Tensor | None], data_samples: list
    ) -> dict[str, list[int]]:
        """Samples that each head learns from: with image and a target for each ``[SEG]``.

        A sample may have the targets of some heads only. Where the numbers of ``[SEG]`` and
        targets differ, the sample is left out (as in the release); the transforms reject such
        samples before they come here.
        """
        rows: dict[str, list[int]] = {name: [] for name in self.head_names}
        for row, (sample, count, feature) in enumerate(zip(data_samples, map(len, segs), maps)):
            numbers = {}
            for name, head in self.heads.items():
                own = {key: _length(sample.get(key)) for key in head.targets}
                numbers.update(own)
                if count and feature is not None and set(own.values()) <= {count}:
                    rows[name].append(row)
            wrong = {key: number for key, number in numbers.items() if number not in (0, count)}
            unused = count and not any(row in one for one in rows.values())
            if wrong or unused:
                MMLogger.get_current_instance().warning(
                    f'{sample.get("sample_id", f"sample {row}")}: {count} [SEG] tokens but '
                    f'{wrong or numbers}; heads leave out what does not fit'
                )
        return rows


def _feature(cfg: dict) -> str:
    """``feature`` of a distillation loss: of its config, else the default of its class."""
    kind = MODELS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    arguments = {} if kind is None else inspect.signature(kind).parameters
    default = arguments['feature'].default if 'feature' in arguments else 'neck'
    return cfg.get('feature', default)


def _length(target: Any) -> int:
    return 0 if target is None else len(target)


def _patch_rows(inputs: ModelInputs) -> Tensor:
    """Flat indices ``(N,)`` into ``(B*L)`` of the patches, in order of ``vision_patches``."""
    return torch.nonzero(inputs['vision_patch_indices'].flatten() >= 0).squeeze(1)


def _build(cfg: dict, **defaults) -> nn.Module:
    """Build a component; ``defaults`` fill keys that the config leaves out."""
    return MODELS.build({**defaults, **cfg})
