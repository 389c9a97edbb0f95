"""The meta-architecture: wires backbone, injector, neck, head and distillation."""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.attention import AttentionLayout
from pixelsail_mm.models.generation import AnsweringMixin
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
        mask_head: Config of the mask head.
        distill: Configs of expert-distillation losses (training only); ``[]`` for none.
        lm_loss_weight: Weight of the language loss in a batch without mask loss.
        lm_loss_weight_with_masks: Its weight in a batch with mask loss (0.1 in the release).
        lm_loss_weight_text_only: Factor on the language loss of tokens in samples without image;
            with a mixture's shares it sets how much of the loss keeps the language alive.
        generation: Defaults for ``predict``: ``max_new_tokens`` and other keywords of Hugging
            Face's ``generate``.
        data_preprocessor: Config of the data preprocessor.
        trainable: Names of the parts that train, see
            :func:`~pixelsail_mm.models.trainable.train_only`; None for all.
        init_cfg: MMEngine initialisation config.

    What follows from another part (``hidden_size``, ``in_channels``, ``patch_size``,
    ``vocab_size``, ``new_tokens``, ``image_layout``) is filled in, so that swapping a part is one
    line of config.

    Raises:
        ConfigError: Two entries of ``distill`` have the same name.
    """

    def __init__(self, tokenizer: Any, backbone: dict, prompt_injector: dict, neck: dict,
                 mask_head: dict, distill: Sequence[dict] = (), lm_loss_weight: float = 1.0,
                 lm_loss_weight_with_masks: float = 0.1,
                 lm_loss_weight_text_only: float = 1.0, generation: dict | None = None,
                 data_preprocessor: dict | None = None, trainable: Sequence[str] | None = None,
                 init_cfg: dict | None = None) -> None:
        vocabulary = build_tokenizer(tokenizer)
        tokens = SpecialTokens.from_tokenizer(vocabulary)
        transformer = _build(backbone, vocab_size=tokens.vocab_size,
                             new_tokens=new_tokens(vocabulary))
        patch_size = transformer.patch_size
        image_layout = getattr(transformer, 'image_layout', 'block')
        preprocessor = dict(type='PixelDataPreprocessor', tokenizer=tokenizer,
                            patch_size=patch_size, image_layout=image_layout)
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
        self.mask_head = _build(mask_head, in_channels=self.neck.out_channels, hidden_size=width)
        widths = dict(neck=self.mask_head.embed_channels, backbone=width)
        self.distill = nn.ModuleList(
            _build(cfg, in_channels=widths[cfg.get('feature', 'neck')]) for cfg in distill)
        names = [loss.name for loss in self.distill]
        if len(set(names)) < len(names):
            raise ConfigError(f'model.distill: losses of one name would hide each other ({names}); '
                              'give every entry its own `name`')
        if trainable is not None:
            train_only(self, trainable)

    def init_weights(self) -> None:
        """Apply each ``init_cfg``, except to a model with 4-bit weights: MMEngine would fail."""
        if all(weight.is_floating_point() for weight in self.parameters()):
            super().init_weights()

    def forward(self, inputs: dict, data_samples: list | None = None, mode: str = 'tensor'):
        """Run the model.

        Args:
            inputs: Batch of :class:`PixelDataPreprocessor`.
            data_samples: One :class:`PixelDataSample` per row; ``gt_masks`` are read in ``loss``.
            mode: ``'tensor'`` -> dict of raw outputs; ``'loss'`` -> dict of losses;
                ``'predict'`` -> the data samples with ``pred_text``, ``pred_masks``,
                ``pred_scores``.

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

    def embed(self, inputs: dict) -> Tensor:
        """Token, patch and prompt embeddings summed: ``(B,L,C)``."""
        tokens = self.backbone.embed_tokens(inputs['input_ids'])
        prompts = self.backbone.embed_tokens(inputs['prompt_token_ids'])
        pixels, grids = inputs['vision_patches'], inputs['grids']
        # Every rank calls every module, also for a batch of text only (ZeRO must not hang).
        text_only = len(pixels) == 0
        if text_only:
            pixels, grids = pixels.new_zeros(1, pixels.shape[1]), [(1, 1)]
        patches = self.backbone.embed_patches(pixels, grids)
        if text_only:
            tokens = tokens + 0.0 * patches.sum().to(tokens.dtype)
        else:
            rows = _patch_rows(inputs)
            tokens = tokens.flatten(0, 1).index_add(
                0, rows, patches.to(tokens.dtype)).view_as(tokens)
        read = (_as_weights_of(self.prompt_injector, part) for part in (tokens, patches, prompts))
        return self.prompt_injector(*read, inputs).to(tokens.dtype)

    def encode(self, inputs: dict) -> Tensor:
        """States ``(B,L,C)`` after the final norm."""
        spans = [(0, *(span or (0, 0))) for span in inputs['image_spans']]
        embeds = self.embed(inputs)
        layout = AttentionLayout(spans, embeds.shape[1], embeds.device, inputs.get('turn_ids'),
                                 causal_images=self.causal_images)
        return self.backbone(embeds, inputs['position_ids'], layout)

    def patch_maps(self, states: Tensor, inputs: dict) -> list[Tensor | None]:
        """Patch states ``(h,w,C)`` per sample; None for text-only samples."""
        sizes = [rows * columns for rows, columns in inputs['grids']]
        patches = states.flatten(0, 1)[_patch_rows(inputs)].split(sizes)
        return [part.view(*grid, -1) if size else None
                for part, grid, size in zip(patches, inputs['grids'], sizes)]

    def image_features(self, maps: list[Tensor | None]) -> list[Tensor | None]:
        """Upsampled and projected features ``(H,W,S)``; None stays None."""
        present = [feature for feature in maps if feature is not None]
        if not present:
            return list(maps)
        upsampled = self.neck([_as_weights_of(self.neck, feature) for feature in present])
        features = iter(self.mask_head.project_images(
            [_as_weights_of(self.mask_head, feature) for feature in upsampled]))
        return [None if feature is None else next(features) for feature in maps]

    def seg_embeddings(self, states: Tensor) -> Tensor:
        """Queries ``(n,S)`` of the mask head from states ``(n,C)`` of ``[SEG]`` tokens."""
        return self.mask_head.project_segs(_as_weights_of(self.mask_head, states))

    def tensor(self, inputs: dict) -> dict[str, Any]:
        """Raw outputs of one pass.

        Returns:
            ``logits`` ``(B,L,V)``, ``last_hidden_state`` ``(B,L,C)``, ``image_features`` (list),
            ``seg_embeddings`` ``(n,S)`` of all ``[SEG]`` in order, ``mask_logits`` (list of
            ``(n_i,H,W)``, None for text-only samples).
        """
        states = self.encode(inputs)
        features = self.image_features(self.patch_maps(states, inputs))
        is_seg = inputs['input_ids'] == self.tokens.seg
        segs = self.seg_embeddings(states[is_seg])
        masks = [None if feature is None else self.mask_head.mask_logits(seg, feature)
                 for seg, feature in zip(segs.split(is_seg.sum(1).tolist()), features)]
        return dict(logits=self.backbone.logits(states), last_hidden_state=states,
                    image_features=features, seg_embeddings=segs, mask_logits=masks)

    def loss(self, inputs: dict, data_samples: list) -> dict[str, Tensor]:
        """Losses of a batch: ``loss_lm``, ``loss_mask``, ``loss_dice``, ``loss_distill_*``."""
        states = self.encode(inputs)
        maps = self.patch_maps(states, inputs)
        targets, is_seg = self._mask_targets(inputs, data_samples)
        wants_features = any(loss.feature == 'neck' for loss in self.distill)
        used = [feature if wants_features or target is not None else None
                for feature, target in zip(maps, targets)]
        anchor = states.new_zeros((), dtype=torch.float32)
        if all(feature is None for feature in used):
            dummy = (states[:1, :1] * 0.0).detach()
            features = [None] * len(used)
            anchor = anchor + 0.0 * self.image_features([dummy])[0].sum()
        else:
            features = self.image_features(used)
        seg_states = states[is_seg]
        if len(seg_states) == 0:
            anchor = anchor + 0.0 * self.seg_embeddings(states[:1, 0]).sum()
            segs = []
        else:
            segs = self.seg_embeddings(seg_states).split(is_seg.sum(1).tolist())
        kept = [i for i, target in enumerate(targets) if target is not None]
        losses = self.mask_head.loss(
            [self.mask_head.mask_logits(segs[i], features[i]) for i in kept],
            [targets[i] for i in kept])
        losses = {name: value + anchor for name, value in losses.items()}
        weight = self.lm_loss_weight_with_masks if kept else self.lm_loss_weight
        losses['loss_lm'] = weight * self._lm_loss(states, inputs)
        for loss in self.distill:
            source = features if loss.feature == 'neck' else maps
            losses[f'loss_distill_{loss.name}'] = loss(source, data_samples)
        return losses

    def _lm_loss(self, states: Tensor, inputs: dict) -> Tensor:
        """Next-token cross entropy; the vocabulary product runs on labelled positions only."""
        targets = inputs['labels'][:, 1:]
        labelled = targets != IGNORE_INDEX
        if not labelled.any():
            # Mean of nothing would be NaN and spread to every loss, as in the release.
            # Summed in float32: a vocabulary overflows float16, and 0 * inf is NaN too.
            return 0.0 * self.backbone.logits(states[:, :1]).float().sum()
        logits = self.backbone.logits(states[:, :-1][labelled])
        losses = F.cross_entropy(logits.float(), targets[labelled], reduction='none')
        if self.lm_loss_weight_text_only != 1.0:
            text_only = torch.tensor([span is None for span in inputs['image_spans']],
                                     device=losses.device)
            rows = torch.nonzero(labelled)[:, 0]
            losses = torch.where(text_only[rows], self.lm_loss_weight_text_only * losses, losses)
        return losses.mean()

    def _mask_targets(self, inputs: dict, data_samples: list
                      ) -> tuple[list[Tensor | None], Tensor]:
        """Ground truth per sample and the ``[SEG]`` positions ``(B,L)`` it belongs to.

        A sample whose numbers of ``[SEG]`` and masks differ gets no mask loss (as in the release);
        the transforms reject such samples before they come here.
        """
        is_seg = inputs['input_ids'] == self.tokens.seg
        targets: list[Tensor | None] = []
        for row, (sample, count) in enumerate(zip(data_samples, is_seg.sum(1).tolist())):
            masks = sample.get('gt_masks')
            number = 0 if masks is None else len(masks)
            usable = number == count and count > 0 and inputs['image_spans'][row] is not None
            if not usable:
                is_seg[row] = False
                if number != count:
                    MMLogger.get_current_instance().warning(
                        f'{sample.get("sample_id", f"sample {row}")}: {count} [SEG] tokens but '
                        f'{number} masks; its mask loss is left out')
            targets.append(masks if usable else None)
        return targets, is_seg


def _patch_rows(inputs: dict) -> Tensor:
    """Flat indices ``(N,)`` into ``(B*L)`` of the patches, in order of ``vision_patches``."""
    return torch.nonzero(inputs['vision_patch_indices'].flatten() >= 0).squeeze(1)


def _as_weights_of(part: nn.Module, value: Tensor) -> Tensor:
    """``value`` in the precision of the part that reads it, e.g. behind a bfloat16 backbone.

    Autocast does this by itself and better; evaluation runs without it.
    """
    weight = next(part.parameters(), None)
    if weight is None or torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(weight.dtype)


def _build(cfg: dict, **defaults) -> nn.Module:
    """Build a component; ``defaults`` fill keys that the config leaves out."""
    return MODELS.build({**defaults, **cfg})
