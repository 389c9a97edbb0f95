"""LoRA, 4-bit weights and rows of new tokens: what trains, what is saved, what a merge gives."""

import pytest
import torch
from mmengine import Config

from pixelsail_mm.checkpoints.checkpoint import load_state, load_weights, save_weights
from pixelsail_mm.checkpoints.conversion.lora_merge import export_adapter, merge_lora
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from pixelsail_mm.errors import CheckpointError, ConfigError
from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import collate, make_sample, tiny_model_config
from tests.helpers.checkpoint_cases import (
    LOGIT_TOLERANCE,
    LORA,
    NF4,
    assert_same_logits,
    fixed_batch,
    logits_of,
    tiny_pixel_sail,
    tokenizer_with,
)
from tests.helpers.checkpoint_cases import lora_backbone as backbone
from tests.helpers.checkpoint_cases import tiny_lora as build

DORA = LORA | dict(use_dora=True)
TIED = pytest.mark.parametrize('tied', [True, False], ids=['tied', 'untied'])


def config(tied=True, **settings):
    """Config of a model with LoRA, as merging needs it."""
    model = tiny_model_config(tokenizer_with(), backbone=backbone(tied, **settings))
    cfg = Config(dict(model={key: value for key, value in model.items() if key != 'tokenizer'}))
    cfg.model.tokenizer = model['tokenizer']
    return cfg


def train(model, steps=3):
    """A few steps on everything that trains; the [SEG] row and adapters must move."""
    data = collate([make_sample(model.tokens, (2, 3), 2, (4,)), make_sample(model.tokens, None)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        losses = model(**model.data_preprocessor(data), mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model.eval()


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@TIED
def test_what_trains(tied):
    model = build(tied)
    before = weights(model)
    train(model)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    decoder = {key for key in moved if key.startswith('backbone.llm.')}
    rows = {'backbone.llm.model.embed_tokens.new_rows', 'backbone.llm.lm_head.new_rows'}
    assert rows <= decoder
    assert {key.split('.lora_')[0].rpartition('.')[2] for key in decoder - rows} == {
        'q_proj',
        'k_proj',
        'v_proj',
        'o_proj',
        'gate_proj',
        'up_proj',
        'down_proj',
    }
    assert all('.lora_' in key for key in decoder - rows)
    others = {key for key in before if not key.startswith(('backbone.llm.', 'data_pre'))}
    assert others <= moved


@TIED
@pytest.mark.parametrize('lora', [LORA, DORA], ids=['lora', 'dora'])
def test_starts_as_the_plain_checkpoint(tied, lora, tmp_path):
    """Adapters add nothing at first, and the new rows are those of the checkpoint's table."""
    plain = tiny_pixel_sail(tied, backbone=backbone(tied, lora=None))
    save_weights(plain.state_dict(), tmp_path / 'plain.safetensors')
    model = build(tied, seed=1, lora=lora)
    report = load_weights(model, tmp_path / 'plain.safetensors', required_prefixes=[])
    assert all('.lora_' in key for key in report.missing) and not report.unexpected
    assert_same_logits(logits_of(plain), model)


@TIED
@pytest.mark.parametrize(
    ('variant', 'avx512bf16'),
    [
        (dict(), False),
        (
            dict(
                lora=LORA | dict(use_rslora=True, bias='all', target_modules=['q_proj', 'up_proj'])
            ),
            False,
        ),
        (dict(lora=DORA), False),
        (dict(quantization=NF4), False),
        (dict(quantization=NF4), True),
        (dict(lora=None, new_token_rows=True), False),
    ],
    ids=['lora', 'rslora', 'dora', 'qlora', 'qlora-avx512bf16', 'rows'],
    indirect=['avx512bf16'],
)
def test_logits_survive_saving_and_merging(tied, variant, avx512bf16, tmp_path):
    model = train(build(tied, **variant))
    expected = logits_of(model)
    assert not torch.allclose(expected, logits_of(build(tied, **variant)), atol=0.01)
    save_weights(model.state_dict(), tmp_path / 'trained.safetensors')

    again = build(tied, seed=1, **variant)
    report = load_weights(again, tmp_path / 'trained.safetensors')
    assert not report.missing and not report.unexpected
    assert_same_logits(expected, again)

    merge_lora(
        config(tied, **variant), tmp_path / 'trained.safetensors', tmp_path / 'merged.safetensors'
    )
    plain_settings = dict(lora=None, quantization=None)
    plain = tiny_pixel_sail(tied, seed=2, backbone=backbone(tied, **plain_settings))
    report = load_weights(plain, tmp_path / 'merged.safetensors')
    assert not report.missing and not report.unexpected and not report.reshaped
    assert_same_logits(expected, plain)
    head, embedding = plain.backbone.llm.lm_head, plain.backbone.llm.get_input_embeddings()
    assert torch.equal(head.weight, embedding.weight) == tied
    plain.backbone.llm.tie_weights()
    assert_same_logits(expected, plain)


def test_both_branches_of_eve_are_adapted():
    model = build(kind='EVETransformer', patch_channels=8)
    rows = dict(image_layout='rows')
    data = collate(
        [
            make_sample(model.tokens, (2, 3), 2, (4,), **rows),
            make_sample(model.tokens, None, **rows),
        ]
    )
    for name, parameter in model.backbone.llm.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = model.data_preprocessor(data)['inputs']
    model(inputs, mode='tensor')['logits'].square().mean().backward()
    for branch in ('text', 'visual'):
        layer = model.backbone.llm.model.layers[0].self_attn.q_proj.get_submodule(branch)
        assert layer.lora_A.default.weight.grad.abs().max() > 0
    expected = model(inputs, mode='tensor')['logits'].detach()
    model.backbone.merge()
    torch.testing.assert_close(
        model(inputs, mode='tensor')['logits'].detach(), expected, atol=1e-5, rtol=0
    )


def test_answers_with_lora_as_merged(tmp_path):
    model = train(build())
    data = collate([make_sample(model.tokens, (2, 3), 1, (4,))])
    answer = [sample.pred_token_ids for sample in model.test_step(data)]
    merged = train(build())
    merged.backbone.merge()
    assert answer == [sample.pred_token_ids for sample in merged.test_step(data)]


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = build(gradient_checkpointing=checkpointing, lora=LORA | dict(lora_dropout=0.0))
        model.train()
        data = model.data_preprocessor(collate([make_sample(model.tokens, (2, 2), 1)]))
        sum(model(**data, mode='loss').values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_initialising_the_model_leaves_it_alone():
    """The runner calls ``init_weights``, which transformers takes as a request to draw anew."""
    for settings in (dict(), dict(quantization=NF4)):
        model = build(**settings)
        before = weights(model)
        model.init_weights()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@TIED
def test_quantised_base_from_a_plain_checkpoint(tied, tmp_path):
    """Its weights are quantised while loading: as if the base itself had been quantised."""
    plain = tiny_pixel_sail(tied, backbone=backbone(tied, lora=None))
    save_weights(plain.state_dict(), tmp_path / 'plain.safetensors')
    model = build(tied, seed=1, quantization=NF4)
    report = load_weights(model, tmp_path / 'plain.safetensors', required_prefixes=[])
    assert all('.lora_' in key for key in report.missing) and not report.unexpected
    difference = (logits_of(model) - logits_of(plain)).abs().mean() / logits_of(plain).std()
    assert 1e-4 < difference < 0.3, 'rounded to 4 bits, but the same model'
    plain.backbone.llm.save_pretrained(tmp_path / 'base')
    settings = dict(backbone(tied, quantization=NF4), llm=str(tmp_path / 'base'))
    from_folder = tiny_pixel_sail(tied, backbone=settings)
    from_folder.backbone.patch_embed.load_state_dict(model.backbone.patch_embed.state_dict())
    from_folder.prompt_injector.load_state_dict(model.prompt_injector.state_dict())
    torch.testing.assert_close(logits_of(from_folder), logits_of(model), atol=1e-5, rtol=0)


def test_quantised_weights_stay_four_bit():
    model = train(build(quantization=NF4))
    layer = model.backbone.llm.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    assert layer.base_layer.weight.numel() == 64 * 64 // 2
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_adapters_and_rows_stay_float32_beside_bfloat16():
    model = build(dtype='bfloat16')
    trained = [p for name, p in model.backbone.llm.named_parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert model.backbone.llm.lm_head.weight.dtype == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(logits_of(model)).all()


@TIED
@pytest.mark.parametrize('bias', ['none', 'all', 'lora_only'])
def test_adapter_opens_in_peft(tied, bias, tmp_path):
    from peft import PeftModel

    lora = LORA | dict(bias=bias)
    model = train(build(tied, lora=lora))
    save_weights(model.state_dict(), tmp_path / 'trained.safetensors')
    export_adapter(config(tied, lora=lora), tmp_path / 'trained.safetensors', tmp_path / 'adapter')
    assert {'adapter_config.json', 'adapter_model.safetensors'} == {
        path.name for path in (tmp_path / 'adapter').iterdir()
    }

    base = build(tied)  # seed 0: the weights the training started from
    decoder = tiny_pixel_sail(tied, seed=3, backbone=backbone(tied, lora=None)).backbone.llm
    frozen = {
        key.replace('.base_layer.', '.'): value
        for key, value in base.backbone.llm.state_dict().items()
        if '.lora_' not in key and not key.endswith('.new_rows')
    }
    decoder.load_state_dict(frozen)
    opened = PeftModel.from_pretrained(decoder, tmp_path / 'adapter').eval()
    batch = fixed_batch(model)
    embedded = opened.get_input_embeddings()(batch['input_ids'])
    torch.testing.assert_close(
        embedded, model.backbone.embed_tokens(batch['input_ids']), atol=LOGIT_TOLERANCE, rtol=0
    )
    states = torch.randn(2, 5, 64)
    head = opened.get_base_model().lm_head
    torch.testing.assert_close(
        head(states), model.backbone.logits(states), atol=LOGIT_TOLERANCE, rtol=0
    )
    for part in ('mlp', 'self_attn.q_proj'):
        theirs = opened.get_base_model().model.layers[1].get_submodule(part)
        ours = model.backbone.llm.model.layers[1].get_submodule(part)
        torch.testing.assert_close(theirs(states), ours(states), atol=LOGIT_TOLERANCE, rtol=0)


def test_adapter_needs_a_stock_decoder_with_lora(tmp_path):
    for settings, message in (
        (dict(kind='EVETransformer', patch_channels=8), 'visual weights'),
        (dict(lora=None, new_token_rows=True), 'no model.backbone.lora'),
    ):
        with pytest.raises(ConfigError, match=message):
            export_adapter(config(**settings), tmp_path / 'no.safetensors', tmp_path / 'adapter')
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ConfigError, match='notes.txt in it would be lost'):
        export_adapter(config(), tmp_path / 'no.safetensors', tmp_path)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(lora=dict(type='IA3Config')), "only 'LoraConfig'"),
        (dict(lora=LORA | dict(rank=4)), 'backbone.lora: .*rank'),
        (dict(lora=LORA | dict(target_modules=['no_such_layer'])), 'no_such_layer'),
        (dict(lora=LORA | dict(target_modules=['q_proj', 'lm_head'])), 'matches lm_head'),
        (
            dict(lora=LORA | dict(modules_to_save=['embed_tokens'])),
            'modules_to_save is not supported',
        ),
        (dict(lora=LORA | dict(init_lora_weights='pissa')), "init_lora_weights='pissa'"),
        (dict(lora=LORA | dict(lora_bias=True)), 'lora_bias is not supported'),
        (dict(lora=LORA | dict(layer_replication=[[0, 2], [1, 2]])), 'layer_replication is not'),
        (dict(lora=LORA | dict(inference_mode=True)), 'inference_mode is not'),
        (dict(lora=LORA | dict(bias='some')), 'backbone.lora: .*bias'),
        (dict(lora=LORA | dict(r='4')), 'backbone.lora: '),
        (dict(lora='q_proj'), "use dict\\(type='LoraConfig'"),
        (dict(lora=None, quantization=NF4), 'cannot train'),
        (dict(quantization=dict(load_in_8bit=True)), 'load_in_4bit'),
        (dict(quantization=dict(load_in_4bit=True, bnb_4bit_type='nf4')), 'bnb_4bit_type'),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_zero3_is_refused_for_four_bit_weights(repo_root):
    from pixelsail_mm.engine.runner_factory import build_runner

    cfg = Config.fromfile(repo_root / 'configs/pixelsail/pixelsail_0.5b_qlora.py')
    cfg.deepspeed = 'zero3'
    with pytest.raises(ConfigError, match='use zero2'):
        build_runner(cfg)


def test_type_may_be_the_class():
    from peft import LoraConfig

    for lora in (
        LORA | dict(type=LoraConfig),
        LORA | dict(type='peft.LoraConfig'),
        LoraConfig(r=4),
    ):
        assert build(lora=lora).backbone.llm.peft_config['default'].r == 4


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / 'trained.safetensors'
    save_weights(build().state_dict(), path)
    return path


def test_merge_refuses_what_does_not_fit(trained, tmp_path):
    target = tmp_path / 'merged.safetensors'
    merge_lora(config(), trained, target)
    with pytest.raises(CheckpointError, match='holds no LoRA weights'):
        merge_lora(config(), target, tmp_path / 'twice.safetensors')
    with pytest.raises(ConfigError, match='no model.backbone.lora'):
        merge_lora(config(lora=None), trained, target)
    with pytest.raises(CheckpointError, match=r'LoRA layers are not.*\(4, 64\), not \(8, 64\)'):
        merge_lora(config(lora=LORA | dict(r=8)), trained, target)
    with pytest.raises(CheckpointError, match='LoRA layers are not.*lora_.* is missing'):
        few = load_state(trained)['state_dict']
        save_weights(
            {key: value for key, value in few.items() if 'layers.1.mlp' not in key},
            tmp_path / 'few.safetensors',
        )
        merge_lora(config(), tmp_path / 'few.safetensors', target)
    with pytest.raises(ConfigError, match='.safetensors file'):
        merge_lora(config(), trained, tmp_path / 'merged.bin')


def test_plain_models_and_other_tokens_ask_for_a_merge(tmp_path):
    trained = tmp_path / 'trained.safetensors'
    model = build()
    save_weights(model.state_dict(), trained, vocabulary_metadata(model.tokenizer))
    plain = tiny_pixel_sail(True, backbone=backbone(lora=None))
    for required in (None, []):
        with pytest.raises(CheckpointError, match='holds LoRA layers.*merge_lora.py'):
            load_weights(plain, trained, required)
    turned = tiny_pixel_sail(
        True, tokenizer=tokenizer_with(['<harbour>', '<ship>']), backbone=backbone()
    )
    with pytest.raises(CheckpointError, match='of other tokens.*merge_lora.py'):
        load_weights(turned, trained)


# What a checkpoint holds beside plain weights, and a model that has no place for it.
@pytest.mark.parametrize(
    ('stored', 'own', 'message'),
    [
        (dict(), dict(lora=LORA | dict(r=8)), 'its LoRA layers are not'),
        (dict(), dict(lora=LORA | dict(target_modules=['q_proj'])), 'its LoRA layers are not'),
        (dict(lora=LORA | dict(target_modules=['q_proj'])), dict(), 'its LoRA layers are not'),
        (dict(), dict(new_token_rows=False), 'holds separate rows of new tokens'),
        (
            dict(lora=None, new_token_rows=True),
            dict(lora=None),
            'holds separate rows of new tokens',
        ),
        (dict(quantization=NF4), dict(), 'holds 4-bit weights'),
        (
            dict(quantization=NF4),
            dict(quantization=NF4 | dict(bnb_4bit_use_double_quant=False)),
            'its 4-bit weights are not',
        ),
        (
            dict(quantization=NF4),
            dict(quantization=NF4 | dict(bnb_4bit_quant_type='fp4')),
            'its 4-bit weights are not',
        ),
    ],
    ids=['rank', 'fewer', 'more', 'lora-without-rows', 'rows', 'qlora-lora', 'statistics', 'fp4'],
)
def test_nothing_trained_is_dropped_in_silence(stored, own, message, tmp_path):
    """Neither testing nor starting another training (nothing is required then)."""
    path = tmp_path / 'trained.safetensors'
    save_weights(build(**stored).state_dict(), path)
    model = build(seed=1, **own)
    before = weights(model)
    for required in (None, []):
        with pytest.raises(CheckpointError, match=f'{message}.*merge_lora.py'):
            load_weights(model, path, required)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_merged_weights_ask_for_the_plain_model(trained, tmp_path):
    merge_lora(config(), trained, tmp_path / 'merged.safetensors')
    for settings in (dict(), dict(quantization=NF4)):
        with pytest.raises(CheckpointError, match='model.backbone.lora=None'):
            load_weights(build(**settings), tmp_path / 'merged.safetensors')


def test_merge_refuses_a_diverged_training(trained, tmp_path):
    state = load_state(trained)['state_dict']
    for key in state:
        if 'lora_B' in key:
            state[key] = torch.full_like(state[key], torch.nan)
    save_weights(state, tmp_path / 'diverged.safetensors')
    with pytest.raises(CheckpointError, match='training diverged'):
        merge_lora(config(), tmp_path / 'diverged.safetensors', tmp_path / 'merged.safetensors')
    assert not (tmp_path / 'merged.safetensors').exists()


def test_merged_weights_hold_no_training_only_parts(tmp_path):
    cfg = config()
    cfg.model.distill = [
        dict(
            type='ExpertDistillLoss',
            name='a',
            expert_channels=8,
            expert=dict(type='CachedExpert', root='none', image_root='none'),
        )
    ]
    state = build().state_dict()
    state['distill.0.proj.weight'] = torch.zeros(2, 2)
    save_weights(state, tmp_path / 'trained.safetensors')
    merge_lora(cfg, tmp_path / 'trained.safetensors', tmp_path / 'merged.safetensors')
    merged = load_state(tmp_path / 'merged.safetensors')['state_dict']
    assert not any(
        key.startswith('distill.') or 'lora_' in key or 'new_rows' in key for key in merged
    )
    plain = MODELS.build(tiny_model_config(tokenizer_with(), backbone=backbone(lora=None)))
    assert merged.keys() == plain.state_dict().keys()
