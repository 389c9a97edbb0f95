"""Stages of training: parts that move, and the weight of plain text."""

import pytest
import torch

from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import (
    TINY_LLM,
    byte_tokenizer,
    collate,
    make_sample,
    tiny_model_config,
)


def build(**parts):
    torch.manual_seed(0)
    return MODELS.build(tiny_model_config(byte_tokenizer(), **parts))


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def batch(model, *grids):
    return model.data_preprocessor(
        collate(
            [
                make_sample(model.tokens, grid, int(grid is not None), seed=seed)
                for seed, grid in enumerate(grids)
            ]
        )
    )


def test_everything_trains_by_default():
    model = build()
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


def test_only_the_named_parts_train():
    model = build(trainable=['backbone.patch_embed', 'mask_head.seg_projector'])
    assert trained_names(model) == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(('backbone.patch_embed.', 'mask_head.seg_projector.'))
    }


@pytest.mark.parametrize('part', ['backbone.llm.lm_head', 'backbone.llm.model.embed_tokens'])
def test_tied_embedding_has_two_names(part):
    model = build(trainable=[part])
    assert model.backbone.llm.lm_head.weight.requires_grad


def test_untied_head_alone():
    model = build(
        llm=TINY_LLM | dict(tie_word_embeddings=False), trainable=['backbone.llm.lm_head']
    )
    assert trained_names(model) == {'backbone.llm.lm_head.weight'}


@pytest.mark.parametrize('grids', [[(2, 3)], [None], [(2, 3), None]], ids=['image', 'text', 'both'])
def test_a_step_moves_the_patch_embedding_only(grids):
    """Also where no sample has an image: every process of a ZeRO run needs a gradient."""
    model = build(trainable=['backbone.patch_embed'])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(**batch(model, *grids), mode='loss').values()).backward()
    assert model.backbone.patch_embed.weight.grad is not None
    optimizer.step()
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == ({'backbone.patch_embed.weight'} if grids != [None] else set())


def test_unknown_part_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match=r"'backbone.patch_embeding'.*backbone.patch_embed\b"):
        build(trainable=['backbone.patch_embeding'])
    with pytest.raises(ValueError, match='mask_head'):
        build(trainable=['maskhead'])


def test_part_that_lora_froze_is_refused():
    """It would be named as trained and stand still."""
    backbone = dict(
        type='SingleTransformer', llm=TINY_LLM, patch_size=8, lora=dict(type='LoraConfig', r=2)
    )
    with pytest.raises(ValueError, match="'backbone.llm.model.norm' is frozen by backbone.lora"):
        build(backbone=backbone, trainable=['backbone.patch_embed', 'backbone.llm.model.norm'])
    model = build(
        backbone=backbone, trainable=['backbone.llm.model.layers.0', 'backbone.llm.lm_head']
    )
    assert {name.partition('.lora_')[1] or name for name in trained_names(model)} == {
        '.lora_',
        'backbone.llm.model.embed_tokens.new_rows',
    }


@pytest.mark.parametrize('grids, text_share', [([(2, 3)], 0.0), ([None], 1.0)])
def test_weight_of_text_only_samples(grids, text_share):
    plain, weighted = build(), build(lm_loss_weight_text_only=3.0)
    loss = plain(**batch(plain, *grids), mode='loss')['loss_lm']
    more = weighted(**batch(weighted, *grids), mode='loss')['loss_lm']
    assert torch.isclose(more, loss * (1 + 2 * text_share))


def test_text_and_images_in_one_batch():
    """The mean runs over all tokens; those of the sample without image count threefold."""
    plain, weighted = build(), build(lm_loss_weight_text_only=3.0)
    inputs = batch(plain, (2, 3), None)
    labels = inputs['inputs']['labels'][:, 1:]
    with torch.no_grad():
        logits = plain(**inputs, mode='tensor')['logits'][:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction='none'
        ).view_as(labels)
        # The mask of the first sample makes it a batch with mask loss.
        expected = weighted.lm_loss_weight_with_masks * (
            (losses[0].sum() + 3 * losses[1].sum()) / (labels >= 0).sum()
        )
        measured = weighted(**inputs, mode='loss')['loss_lm']
    assert torch.isclose(measured, expected)
