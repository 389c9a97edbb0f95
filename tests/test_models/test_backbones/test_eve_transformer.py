"""The EVEv2 variant: routing, layout, batches, gradients, save and load."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_state, save_weights
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.backbones.eve_modules import ConvPatchEmbedding, RoutedModule
from pixelsail_mm.registry import MODELS, TRANSFORMS
from pixelsail_mm.testing.tiny_models import (
    TINY_EVE,
    TINY_LLM,
    byte_tokenizer,
    collate,
    make_sample,
)
from pixelsail_mm.testing.tiny_models import tiny_model_config as config


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


def build(tokenizer, distinct=True, seed=0, **backbone):
    """A tiny model; ``distinct``: visual weights that are no copies of the textual ones."""
    torch.manual_seed(seed)
    model = MODELS.build(
        config(tokenizer, **TINY_EVE | dict(backbone=TINY_EVE['backbone'] | backbone))
    )
    for name, parameter in model.named_parameters():
        if distinct and '.visual.' in name:
            torch.nn.init.normal_(parameter, mean=float('norm' in name), std=0.2)
    return model


@pytest.fixture
def model(tokenizer):
    return build(tokenizer)


def sample(model, *args, **kwargs):
    return make_sample(model.tokens, *args, image_layout='rows', **kwargs)


def mixed(model):
    return [
        sample(model, (2, 3), 2, (4, 0), seed=1),
        sample(model, None, seed=2),
        sample(model, (3, 2), 0, seed=3),
        sample(model, (4, 1), 1, (7,), seed=4),
    ]


def batch_of(model, samples):
    return model.data_preprocessor(collate(samples))


def states(model, inputs):
    with torch.no_grad():
        return model.encode(model.data_preprocessor(dict(inputs=[inputs]))['inputs'])[0]


def test_layout_of_a_batch(model):
    """``<|vis_cls|> p p p | p p p |`` and text: plain positions, patches numbered without them."""
    inputs = batch_of(model, [sample(model, (2, 3), prompt_ids=(4,), text_length=2)])['inputs']
    tokens = model.tokens
    block = [tokens.vision_class, *[*[tokens.vpatch] * 3, tokens.vision_row_end] * 2]
    assert inputs['input_ids'][0, :9].tolist() == block
    assert inputs['vision_patch_indices'][0, :10].tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, -1, -1]
    assert inputs['vp_token_indices'][0, :10].tolist() == [-1, 4, -2, -2, -1, -2, -2, -2, -1, -1]
    assert inputs['position_ids'][:, 0].tolist() == [list(range(inputs['lengths'][0]))] * 3
    assert inputs['image_spans'] == [(0, 9)] and inputs['grids'] == [(2, 3)]


def test_another_layout_is_refused(model, tokenizer):
    block = make_sample(model.tokens, (2, 3))
    with pytest.raises(ValueError, match="image_layout='rows'"):
        batch_of(model, [block])
    single = MODELS.build(config(tokenizer))
    with pytest.raises(ValueError, match="image_layout='block'"):
        batch_of(single, [sample(model, (2, 3))])


def test_each_token_passes_one_branch(model):
    """Never both for all: 9 + 5 image tokens go one way, the rest and the padding the other."""
    samples = [sample(model, (2, 3)), sample(model, (2, 1), text_length=20)]
    batch = batch_of(model, samples)['inputs']
    mlp = model.backbone.llm.model.layers[1].mlp
    seen = {}
    for branch in ('text', 'visual'):
        getattr(mlp, branch).register_forward_pre_hook(
            lambda _, args, branch=branch: seen.__setitem__(branch, len(args[0]))
        )
    model.encode(batch)
    assert seen == dict(visual=9 + 5, text=batch['input_ids'].numel() - 14)


def test_visual_weights_move_what_follows_the_image_only(model):
    """A change of the class token's branch reaches everything behind; text before it stays."""
    inputs, _ = sample(model, (2, 3))
    text = torch.tensor([5, 6, 7])
    inputs.update(
        input_ids=torch.cat([text, inputs['input_ids']]),
        labels=torch.cat([text * 0 - 100, inputs['labels']]),
    )
    before = states(model, inputs)
    with torch.no_grad():
        model.backbone.llm.model.layers[0].mlp.visual.down_proj.weight.mul_(2)
    moved = (states(model, inputs) - before).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * (len(moved) - 3)


def test_images_are_causal(model):
    """The last patch, at index 7, reaches itself and what follows, nothing before it."""
    inputs, _ = sample(model, (2, 3))
    image = inputs['image'].clone()
    image[:, -8:, -8:] = 255 - image[:, -8:, -8:]
    moved = (states(model, dict(inputs, image=image)) - states(model, inputs)).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * 7 + [True] * (len(moved) - 7)


def test_copies_of_the_textual_weights_compute_what_the_decoder_does(tokenizer):
    """Fresh from a text-only base, a sequence of embeddings gets the stock decoder's states."""
    model = build(tokenizer, distinct=False)
    from transformers import Qwen2Config, Qwen2ForCausalLM

    stock = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), **{k: v for k, v in TINY_LLM.items() if k != 'model_type'}
        )
    )
    stock.load_state_dict(
        {
            key.replace('.text.', '.'): value
            for key, value in model.backbone.llm.state_dict().items()
            if '.visual.' not in key
        }
    )
    batch = batch_of(model, [sample(model, (2, 3), prompt_ids=(4,))])['inputs']
    with torch.no_grad():
        expected = stock.model(inputs_embeds=model.embed(batch)).last_hidden_state
        torch.testing.assert_close(model.encode(batch), expected, atol=1e-5, rtol=1e-5)


def test_patch_embedding_is_two_convolutions(model):
    """Over the whole image, as in EVEv2: windows do not overlap."""
    embedding = ConvPatchEmbedding(8, 12, 32, torch.float32)
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    patches = model.data_preprocessor._patchify([image])
    pixels = (image - model.data_preprocessor.mean.view(3, 1, 1)) / (
        model.data_preprocessor.std.view(3, 1, 1)
    )
    whole = embedding.join(torch.nn.functional.gelu(embedding.quarters(pixels[None])))
    torch.testing.assert_close(embedding(patches), whole[0].flatten(1).T, atol=1e-5, rtol=1e-5)


def test_prompt_is_added_directly(model):
    """The token's embedding itself on its patch; class and split tokens stay bare."""
    inputs, _ = sample(model, (2, 3))
    plain = model.embed(model.data_preprocessor(dict(inputs=[inputs]))['inputs'])[0]
    inputs['prompt_map'][:] = torch.tensor([[4, -2, -2], [-2, -2, 4]])
    marked = model.embed(model.data_preprocessor(dict(inputs=[inputs]))['inputs'])[0]
    prompt = model.backbone.embed_tokens(torch.tensor(model.tokens.prompts[4]))
    torch.testing.assert_close((marked - plain)[[1, 7]], prompt.expand(2, -1))
    rest = [i for i in range(len(plain)) if i not in (1, 7)]
    assert torch.equal(marked[rest], plain[rest])
    assert not list(model.prompt_injector.parameters())


def test_mixed_batch_equals_its_samples(model):
    samples = mixed(model)
    model.eval()
    together = model(batch_of(model, samples)['inputs'], mode='tensor')
    segs = together['seg_states']
    for row, one in enumerate(samples):
        alone = model(batch_of(model, [one])['inputs'], mode='tensor')
        length = alone['logits'].shape[1]
        close = dict(atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together['logits'][row, :length], alone['logits'][0], **close)
        torch.testing.assert_close(segs[row], alone['seg_states'][0], **close)
        masks = alone['heads']['mask'][0]
        assert (masks is None) == (one[0]['image'] is None)
        if masks is not None:
            torch.testing.assert_close(together['heads']['mask'][row], masks, **close)
    assert together['features']['mask'][0].shape[:2] == (2 * 4, 3 * 4), 'patch 8, stride 2'


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('pick', ['text', 'no_masks', 'mixed'])
def test_every_parameter_gets_a_gradient(tokenizer, pick, checkpointing):
    """Otherwise ZeRO hangs when one process has no image, mask or prompt."""
    model = build(tokenizer, gradient_checkpointing=checkpointing).train()
    samples = mixed(model)
    batch = dict(text=[samples[1]], no_masks=[samples[2]], mixed=samples)[pick]
    losses = model(**batch_of(model, batch), mode='loss')
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    moves = {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
    visual = {name for name, _ in model.named_parameters() if '.visual.' in name}
    assert bool(visual & moves) == (pick != 'text')


def test_checkpointing_and_two_passes_before_one_backward(tokenizer):
    """Layers recomputed in the backward pass route as in their own forward pass."""
    gradients = []
    for checkpointing in (False, True):
        model = build(tokenizer, gradient_checkpointing=checkpointing).train()
        samples = mixed(model)
        sum(
            sum(model(**batch_of(model, [one]), mode='loss').values()) for one in samples[::3]
        ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_modules_are_called_equally_often_whatever_the_batch(model):
    """ZeRO-3 gathers at each module call: counts must not depend on the samples."""
    counts = {}
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(
                lambda *_, name=name: counts.__setitem__(name, counts.get(name, 0) + 1)
            )
    samples = mixed(model)
    recorded = []
    for batch in ([samples[1]], samples, [samples[2]]):
        counts.clear()
        model(**batch_of(model, batch), mode='loss')
        recorded.append(dict(counts))
    assert all(other == recorded[0] for other in recorded[1:])
    assert any('.visual' in name for name in recorded[0])


def test_decoding_with_a_cache_runs_the_textual_branch_only(model):
    lengths = []
    mlp = model.backbone.llm.model.layers[0].mlp
    mlp.visual.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    data = batch_of(model, [sample(model, (2, 3)), sample(model, None, seed=1)])
    answers = model.eval().predict(**data, max_new_tokens=5, eos_token_id=[])
    assert lengths == [9] and all(len(answer.pred_token_ids) for answer in answers)


def test_independent_turns_equal_single_ones(model, tokenizer):
    """Each turn follows the image directly, whatever other turns the sample holds."""
    transform = TRANSFORMS.build(
        dict(
            type='BuildConversation',
            tokenizer=tokenizer,
            image_layout='rows',
            independent_turns=True,
        )
    )
    image = sample(model, (2, 3))[0]['image']

    def run(*questions):
        results = transform(
            dict(
                conversation=[dict(human=question, gpt='yes') for question in questions],
                grid=(2, 3),
                gt_masks=np.zeros((0, 16, 24), bool),
                img_path='a.png',
            )
        )
        inputs = {
            key: torch.from_numpy(results[key]) for key in ('input_ids', 'labels', 'turn_ids')
        }
        return states(model, dict(inputs, image=image, prompt_map=None)), inputs['turn_ids']

    both, turns = run('one', 'another')
    for number, question in ((1, 'one'), (2, 'another')):
        alone, turn = run(question)
        torch.testing.assert_close(both[turns == number], alone[turn == 1], atol=1e-5, rtol=1e-4)


def test_save_and_load(tokenizer, model, tmp_path):
    save_weights(model.state_dict(), tmp_path / 'model.safetensors')
    other = build(tokenizer, seed=1)
    other.load_state_dict(load_state(tmp_path / 'model.safetensors')['state_dict'], strict=False)
    inputs = mixed(model)[0][0]
    torch.testing.assert_close(states(other, inputs), states(model, inputs))


def test_initialisation_by_the_runner_draws_nothing_anew(model):
    """``init_weights`` must not touch what came from a pre-trained decoder, copies included."""
    before = {name: value.clone() for name, value in model.backbone.llm.state_dict().items()}
    model.init_weights()
    after = model.backbone.llm.state_dict()
    assert not [name for name, value in before.items() if not torch.equal(after[name], value)]


def test_lora_adapts_both_branches(tokenizer):
    model = build(tokenizer, distinct=False, lora=dict(type='LoraConfig', r=2)).train()
    sum(model(**batch_of(model, mixed(model)), mode='loss').values()).backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(model.get_parameter(name).grad is not None for name in trained)
    for branch in ('text', 'visual'):
        assert f'backbone.llm.model.layers.0.self_attn.q_proj.{branch}.lora_A.default.weight' in (
            trained
        )
    inputs = mixed(model)[0][0]
    with torch.no_grad():
        for name in trained:
            if 'lora_B' in name:
                model.get_parameter(name).normal_(std=0.2)
    expected = states(model.eval(), inputs)
    model.backbone.merge()
    torch.testing.assert_close(states(model, inputs), expected, atol=1e-5, rtol=1e-4)


def test_a_copy_routes_for_itself(model):
    """``deepcopy`` (used for averaged weights) must not share the state of the original."""
    copy = deepcopy(model)
    routings = [
        {id(m._routing) for m in one.modules() if isinstance(m, RoutedModule)}
        for one in (model, copy)
    ]
    assert [len(found) for found in routings] == [1, 1] and routings[0] != routings[1]
    inputs = mixed(model)[0][0]
    torch.testing.assert_close(states(copy, inputs), states(model, inputs))


def test_upsampler_depth_at_stride_32():
    """EVE's counts: four blocks to stride 2, two to stride 8."""
    for out_stride, blocks in ((2, 4), (8, 2)):
        neck = MODELS.build(
            dict(
                type='LearnableUpsampler',
                in_channels=32,
                patch_size=32,
                out_stride=out_stride,
                max_channels=16,
            )
        )
        assert len(neck.blocks) == blocks and neck.pre_projector is not None
        assert neck([torch.zeros(1, 2, 32)])[0].shape == (32 // out_stride, 64 // out_stride, 16)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(patch_size=7), 'must be even'),
        (dict(patch_positions=2.0), 'patch_positions'),
        (dict(llm=dict(TINY_LLM, model_type='phi3')), 'self_attn.q_proj'),
        (dict(patch_chanels=8), 'EVETransformer has no patch_chanels'),
    ],
)
def test_bad_settings_are_named(tokenizer, options, message):
    with pytest.raises(ConfigError, match=message):
        build(tokenizer, **options)
