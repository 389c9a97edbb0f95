"""Distillation in the whole model against recorded losses and gradients."""

import pytest
import torch

from tests.helpers.parity import GRAD_PREFIX, ParityFixtures

# Case -> arrays of the sequence, expert features per sample (None: text only).
CASES = dict(one=[0], two=[0, 1], image_and_text=[0, None])


class StoredExpert:
    """Stands for the frozen experts: gives the recorded random features."""

    def __init__(self, maps):
        self.maps = maps

    def __call__(self, data_samples):
        return self.maps


@pytest.fixture(scope='module')
def fixtures(parity_dir):
    return ParityFixtures(parity_dir)


def _batch(fixtures, case):
    """Batches of the recorded cases, put together from the recorded samples."""
    if case == 'one':
        return fixtures.batch(fixtures.arrays('forward_1img'))
    if case == 'two':
        return fixtures.batch(fixtures.arrays('batch2'))
    arrays = fixtures.arrays('batch3_textonly')
    patches = int(arrays['patch_nums_per_images'][0].prod())
    kept = {
        key: value[:2]
        for key, value in arrays.items()
        if key
        in (
            'input_ids',
            'labels',
            'vision_patch_indices',
            'vp_token_indices',
            'patch_nums_per_images',
            'lengths',
        )
    }
    kept.update(
        position_ids=arrays['position_ids'][:, :2],
        gt_masks_0=arrays['gt_masks_0'],
        vision_patches=arrays['vision_patches'][:patches],
    )
    return fixtures.batch(kept)


@pytest.mark.parametrize('case', CASES)
def test_losses_and_gradients(fixtures, case):
    arrays = fixtures.arrays('distill')
    scale, weight = arrays['feature_scale'], arrays['distillation_loss_weight'].item()

    def expert(name):
        return StoredExpert(
            [None if i is None else arrays[f'{name}_{i}'][0].float() * scale for i in CASES[case]]
        )

    channels = arrays['sam2_linear_weight'].shape[0]
    common = dict(type='ExpertDistillLoss', expert_channels=channels, loss_weight=weight)
    model = fixtures.build(
        distill=[
            dict(common, name='sam2', feature='backbone', expert=expert('sam2_image_embed')),
            dict(
                common,
                name='mask2former',
                feature='neck',
                expert=expert('mask2former_pixel_decoder'),
            ),
        ]
    )
    names = dict(sam2=model.distill[0].proj, mask2former=model.distill[1].proj)
    for name, linear in names.items():
        linear.load_state_dict(
            dict(weight=arrays[f'{name}_linear_weight'], bias=arrays[f'{name}_linear_bias'])
        )
    losses = model.train()(*_batch(fixtures, case), mode='loss')
    recorded = dict(
        loss_mask='loss_mask',
        loss_dice='loss_dice',
        loss_lm='llm_loss',
        loss_distill_sam2='sam2_distill_loss',
        loss_distill_mask2former='mask2former_distill_loss',
    )
    for ours, theirs in recorded.items():
        torch.testing.assert_close(
            losses[ours].detach(), arrays[f'{case}/{theirs}'], atol=1e-5, rtol=1e-5
        )
    sum(losses.values()).backward()
    gradients = {
        'sam2_distill_linear.weight': names['sam2'].weight.grad,
        'mask2former_distill_linear.weight': names['mask2former'].weight.grad,
        'single_transformer.model.vp_embed.weight': model.prompt_injector.proj.weight.grad,
    }
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, arrays[f'{case}/{GRAD_PREFIX}{name}'], atol=1e-4, rtol=1e-3
        )
