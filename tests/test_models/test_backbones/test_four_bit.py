"""4-bit weights stay what they were, whatever the CPU, when a model has answered."""

from copy import deepcopy

import pytest
import torch

from pixelsail_mm.checkpoints.checkpoint import load_weights, save_weights
from pixelsail_mm.testing.tiny_models import collate, make_sample
from tests.helpers.checkpoint_cases import NF4, logits_of
from tests.helpers.checkpoint_cases import tiny_lora as build

BOTH_CPUS = pytest.mark.parametrize(
    'avx512bf16', [False, True], indirect=True, ids=['any-cpu', 'avx512bf16']
)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def gradients(model):
    """Of one step without dropout, which the seed of the caller would change."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    data = collate([make_sample(model.tokens, (2, 2), 1)])
    sum(model(**model.data_preprocessor(data), mode='loss').values()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@BOTH_CPUS
@pytest.mark.parametrize('double', [True, False], ids=['double', 'single'])
def test_an_answer_leaves_four_bit_weights_alone(double, avx512bf16, tmp_path):
    """Nor what is learnt after it: a training answers at every validation."""
    model = build(quantization=NF4 | dict(bnb_4bit_use_double_quant=double))
    before, expected = weights(model), gradients(model)
    save_weights(before, tmp_path / 'model.safetensors')
    again = build(seed=1, quantization=NF4 | dict(bnb_4bit_use_double_quant=double))
    load_weights(again, tmp_path / 'model.safetensors')
    for one in (deepcopy(model), model, model.to('cpu').to(torch.float32), again):
        answer = logits_of(one)
        after = weights(one)
        assert after.keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in after.items())
        assert torch.equal(logits_of(one), answer)
        learnt = gradients(one)
        assert learnt.keys() == expected.keys()
        for name, value in learnt.items():
            torch.testing.assert_close(value, expected[name])


@BOTH_CPUS
def test_four_bit_layers_compute_with_the_saved_weights(avx512bf16):
    """In float32, where they compute in it: packed ones would round to bfloat16."""
    from bitsandbytes.functional import dequantize_4bit

    model = build(quantization=NF4).eval()
    layer = model.backbone.llm.model.layers[1].mlp.up_proj.base_layer
    states = torch.randn(3, 64)
    expected = states @ dequantize_4bit(layer.weight.data, layer.weight.quant_state).T
    with torch.no_grad():
        torch.testing.assert_close(layer(states), expected, atol=1e-6, rtol=0)


def test_packed_weights_are_not_saved():
    """Another's hand, or another version of bitsandbytes, may pack in spite of us."""
    model = build(quantization=NF4)
    layer = model.backbone.llm.model.layers[0].self_attn.q_proj.base_layer
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        layer(torch.zeros(1, 64))
    with pytest.raises(RuntimeError, match='packed .*load its checkpoint again'):
        model.state_dict()
