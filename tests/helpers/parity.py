"""Building a model from parity fixtures: folders of numbers recorded from the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from pixelsail_mm.structures import PixelDataSample

GRAD_PREFIX = 'grad::'


class ParityFixtures:
    """A fixture folder; every size is read from its ``model_config.json``.

    Args:
        root: Folder with ``model_config.json``, ``weights*.safetensors``, ``tokenizer/`` and the
            ``.npz`` files.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = json.loads((self.root / 'model_config.json').read_text())

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        """All arrays of ``name.npz`` as tensors."""
        with np.load(self.root / f'{name}.npz', allow_pickle=False) as file:
            return {key: torch.from_numpy(np.asarray(file[key]).copy()) for key in file.files}

    def model_config(self, tied_preproj: bool = False, num_points: int | None = None) -> dict:
        """Model config of the recorded network, random weights."""
        key = 'tied_preproj_hyper_parameters' if tied_preproj else 'hyper_parameters'
        hyper, loss = self.config[key], self.config['loss']
        names = (
            'hidden_size',
            'intermediate_size',
            'num_hidden_layers',
            'num_attention_heads',
            'num_key_value_heads',
            'rope_theta',
            'rms_norm_eps',
            'tie_word_embeddings',
            'hidden_act',
        )
        return dict(
            type='PixelSAIL',
            tokenizer=str(self.root / 'tokenizer'),
            backbone=dict(
                type='SingleTransformer',
                patch_size=hyper['vision_patch_size'],
                llm=dict(model_type='qwen2', **{n: hyper[n] for n in names}),
            ),
            prompt_injector=dict(type='VisualPromptInjector'),
            neck=dict(type='LearnableUpsampler', out_stride=2, max_channels=hyper['in_dim']),
            mask_head=dict(
                type='SegTokenMaskHead',
                embed_channels=hyper['seg_hidden_states'],
                num_points=num_points,
                target_resize='nearest',
                oversample_ratio=loss['oversample_ratio'],
                importance_sample_ratio=loss['importance_sample_ratio'],
            ),
            lm_loss_weight_with_masks=loss['llm_loss_scale_when_masks'],
        )

    def build(self, tied_preproj: bool = False, num_points: int | None = None, distill=()):
        """Model with the recorded weights, in float32 on the CPU."""
        from safetensors.torch import load_file

        from pixelsail_mm.checkpoints.conversion.official_keys import official_to_mm
        from pixelsail_mm.registry import MODELS

        config = self.model_config(tied_preproj, num_points) | dict(distill=list(distill))
        model = MODELS.build(config)
        name = 'weights_tied_preproj' if tied_preproj else 'weights'
        state = official_to_mm(load_file(self.root / f'{name}.safetensors'))
        report = model.load_state_dict(state, strict=False)
        missing = [key for key in report.missing_keys if not key.startswith('distill.')]
        if missing or report.unexpected_keys:
            raise ValueError(f'{name}: missing {missing}, unexpected {report.unexpected_keys}')
        return model

    def batch(self, arrays: dict[str, torch.Tensor]) -> tuple[dict, list[PixelDataSample]]:
        """Model inputs and data samples of a recorded batch (prefix-free arrays)."""
        ids = self.config['token_ids']
        input_ids = arrays['input_ids']
        lengths = arrays.get('lengths', torch.tensor([input_ids.shape[1]] * len(input_ids)))
        spans = []
        for row in input_ids:
            start = torch.nonzero(row == ids['vision_start_id']).flatten().tolist()
            end = torch.nonzero(row == ids['vision_end_id']).flatten().tolist()
            spans.append((start[0], end[0] + 1) if start else None)
        inputs = dict(
            input_ids=input_ids,
            labels=arrays['labels'],
            position_ids=arrays['position_ids'],
            vision_patches=arrays['vision_patches'],
            vision_patch_indices=arrays['vision_patch_indices'],
            vp_token_indices=arrays['vp_token_indices'],
            prompt_token_ids=torch.tensor(ids['visual_prompt_token_ids'][:15]),
            grids=[tuple(grid) for grid in arrays['patch_nums_per_images'].tolist()],
            image_spans=spans,
            lengths=lengths.tolist(),
        )
        samples = []
        for row in range(len(input_ids)):
            sample = PixelDataSample(metainfo=dict(sample_id=f'row {row}'))
            if f'gt_masks_{row}' in arrays:
                sample.gt_masks = arrays[f'gt_masks_{row}'].bool()
            samples.append(sample)
        return inputs, samples
