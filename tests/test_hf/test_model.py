"""An exported folder computes what the model did that it was made from."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    TextStreamer,
)

import pixelsail_mm.hf  # noqa: F401  (registers the Auto classes)
from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.apis.inputs import make_record
from pixelsail_mm.hf.export import export_hf
from tests.helpers.checkpoint_cases import LOGIT_TOLERANCE, fixed_batch


@pytest.fixture(scope='module')
def original(exported):
    return init_model(exported.cfg, exported.checkpoint, 'cpu')


@pytest.fixture(scope='module')
def model(exported):
    return AutoModelForCausalLM.from_pretrained(exported.folder).eval()


@pytest.fixture(scope='module')
def inputs(exported, questions):
    return AutoProcessor.from_pretrained(exported.folder)(**questions)


@torch.no_grad()
def logits(model, batch):
    return model.tensor(batch)['logits']


def assert_logits_equal(expected, model, batch, atol=LOGIT_TOLERANCE):
    torch.testing.assert_close(logits(model, batch).float(), expected, atol=atol, rtol=0)


def keys_in(folder):
    keys = set()
    for file in folder.glob('*.safetensors'):
        with safe_open(file, 'pt') as opened:
            keys |= set(opened.keys())
    return keys


def test_logits_are_those_before_the_export(exported, original, model):
    batch = fixed_batch(original)
    expected = logits(original, batch)
    assert_logits_equal(expected, model.model, batch)
    assert_logits_equal(expected, init_model(exported.folder, device='cpu'), batch)


def test_weight_names_are_ours_behind_model(exported, original):
    own = {f'model.{key}' for key in original.state_dict()}
    if exported.tied:
        own.remove('model.backbone.llm.lm_head.weight')
    assert keys_in(exported.folder) == own


def test_tied_weights_are_one_tensor(exported, model):
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == exported.tied


def test_answers_and_masks_are_those_of_the_inferencer(exported, model, inputs, questions):
    """Through the original config, the folder, and Transformers alone."""
    renamed = dict(
        image='images',
        text='text',
        prompts='visual_prompts',
        history='history',
        answer_prefix='answer_prefix',
    )
    call = {ours: questions[theirs] for ours, theirs in renamed.items()}
    before = PixelSAILInferencer(exported.cfg, exported.checkpoint, 'cpu')(**call)
    after = PixelSAILInferencer(exported.folder, device='cpu')(**call, batch_size=3)
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    processor = AutoProcessor.from_pretrained(exported.folder)
    texts = processor.post_process_answers(outputs.sequences, inputs)
    assert processor.post_process_answers(outputs, inputs) == texts
    # The forced beginnings of the answers hold these numbers of [SEG].
    assert len(before[0]['masks']) >= 2 and len(before[1]['masks']) >= 1
    for row, (one, other) in enumerate(zip(before, after)):
        assert one['text'] == other['text'] == texts[row]
        np.testing.assert_array_equal(one['masks'], other['masks'])
        np.testing.assert_array_equal(one['masks'], outputs.masks[row].numpy())
        np.testing.assert_allclose(one['mask_scores'], outputs.mask_scores[row], atol=1e-6)


def test_a_batch_reaches_the_model_as_from_our_pipeline(exported, original, model, questions):
    """Forward of a padded batch gives the logits of our own preprocessing, row by row."""
    ask = PixelSAILInferencer(original)
    processor = AutoProcessor.from_pretrained(exported.folder)
    for row in range(3):
        call = {key: value[row] for key, value in questions.items()}
        packed = ask.pipeline(
            make_record(
                'row',
                call['images'],
                call['text'],
                call['visual_prompts'],
                call['history'],
                call['answer_prefix'],
            )
        )
        batch = original.data_preprocessor(pseudo_collate([packed]), False)['inputs']
        alone = processor(**call)
        assert alone['input_ids'].tolist() == batch['input_ids'].tolist()
        padded = processor(**questions)
        with torch.no_grad():
            got = model(**padded).logits[row, padded['attention_mask'][row].bool()]
        torch.testing.assert_close(got, logits(original, batch)[0], atol=LOGIT_TOLERANCE, rtol=0)


def test_loss_is_the_language_loss_whatever_side_is_padded(original, model, inputs):
    labels = torch.where(inputs['attention_mask'] == 1, inputs['input_ids'], -100)
    loss = model(**inputs, labels=labels).loss
    samples = [
        [row[mask.bool()] for row, mask in zip(inputs[key], inputs['attention_mask'])]
        for key in ('input_ids', 'attention_mask')
    ]
    right = {
        key: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        for key, rows in zip(('input_ids', 'attention_mask'), samples)
    }
    again = model(
        **dict(inputs, **right, answer_mask=None),
        labels=torch.where(right['attention_mask'] == 1, right['input_ids'], -100),
    ).loss
    total, count = 0.0, 0
    for row, mask in enumerate(inputs['attention_mask'].bool()):
        one = model(**{key: value[row : row + 1] for key, value in inputs.items()}).logits[0, mask]
        targets = inputs['input_ids'][row, mask][1:]
        total += torch.nn.functional.cross_entropy(one[:-1], targets, reduction='sum')
        count += len(targets)
    torch.testing.assert_close(loss, total / count)
    torch.testing.assert_close(again, loss)
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()


def test_save_pretrained_round_trip_in_shards(original, model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 2
    assert json.loads((tmp_path / 'config.json').read_text())['model_type'] == 'pixelsail'
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = fixed_batch(original)
    assert_logits_equal(logits(original, batch), again.model, batch)


def test_export_in_shards_is_opened_by_both(exported, original, tmp_path):
    folder = export_hf(exported.cfg, exported.checkpoint, tmp_path / 'hf', max_shard_size='20KB')
    assert (folder / 'model.safetensors.index.json').is_file()
    batch = fixed_batch(original)
    expected = logits(original, batch)
    assert_logits_equal(expected, init_model(folder, device='cpu'), batch)
    assert_logits_equal(expected, AutoModelForImageTextToText.from_pretrained(folder).model, batch)


@pytest.mark.parametrize('device_map', ['cpu', 'auto'])
def test_device_map(exported, original, device_map):
    model = AutoModelForCausalLM.from_pretrained(exported.folder, device_map=device_map)
    batch = fixed_batch(original)
    assert_logits_equal(logits(original, batch), model.model.cpu(), batch)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision(exported, original, inputs, tmp_path, dtype):
    """Stored in half precision and computed in float32 or in half precision."""
    folder = export_hf(exported.cfg, exported.checkpoint, tmp_path / 'hf', dtype)
    batch = fixed_batch(original)
    expected = logits(original, batch)
    assert_logits_equal(expected, AutoModelForCausalLM.from_pretrained(folder).model, batch, 0.02)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype='auto').eval()
    assert {str(value.dtype) for value in half.parameters()} == {f'torch.{dtype}'}
    assert half.model.data_preprocessor.mean.dtype == torch.float32
    assert_logits_equal(expected, half.model, batch, 0.05)
    outputs = half.generate(**inputs, return_dict_in_generate=True)
    assert len(outputs.masks[0]) >= 2 and len(outputs.masks[1]) >= 1
    assert (folder / 'model.safetensors').stat().st_size < 0.6 * (
        exported.folder / 'model.safetensors'
    ).stat().st_size


def test_generation_settings(exported, model, inputs):
    tokens = model.model.tokens
    ends = model.generation_config
    assert sorted(ends.eos_token_id) == sorted(
        [tokens.eos, model.config.special_tokens['<|im_end|>']]
    )
    assert ends.pad_token_id == tokens.pad and ends.max_new_tokens == 4
    length = inputs['input_ids'].shape[1]
    assert model.generate(**inputs).shape == (3, length + 4)
    assert model.generate(**inputs, max_new_tokens=2).shape == (3, length + 2)
    first = model.generate(**inputs)[0, length]
    stopped = model.generate(
        **{key: value[:1] for key, value in inputs.items()}, eos_token_id=first.item()
    )
    assert stopped.shape == (1, length + 1)


def test_sizes_may_be_left_out(model, inputs):
    """Masks then have the size of the resized image, which fills its row of the batch."""
    one = {key: value[1:2] for key, value in inputs.items()}
    height, width = one['image_sizes'][0].tolist()
    one['pixel_values'] = one['pixel_values'][:, :, :height, :width]
    expected = model.generate(**one, return_dict_in_generate=True)
    for absent in ('original_sizes', 'prompt_map', 'image_grids', 'image_sizes'):
        del one[absent]
        outputs = model.generate(**one, return_dict_in_generate=True)
        assert torch.equal(outputs.sequences, expected.sequences)
        assert outputs.masks[0].shape == (len(expected.masks[0]), height, width)


def test_answers_do_not_depend_on_the_cache(model, inputs):
    expected = model.generate(**inputs, return_dict_in_generate=True, min_new_tokens=4)
    outputs = model.generate(
        **inputs, return_dict_in_generate=True, min_new_tokens=4, use_cache=False
    )
    assert torch.equal(outputs.sequences, expected.sequences)
    for one, other in zip(outputs.masks, expected.masks):
        assert torch.equal(one, other)


def test_settings_given_as_an_object(exported, inputs):
    """What the object leaves open comes from the folder, as for other models."""
    model = AutoModelForCausalLM.from_pretrained(exported.folder).eval()
    plain = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
    length = inputs['input_ids'].shape[1]
    model.generation_config.suppress_tokens = plain[:, length:].unique().tolist()
    expected = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
    got = model.generate(
        **inputs, generation_config=GenerationConfig(max_new_tokens=8, min_new_tokens=8)
    )
    assert torch.equal(got, expected) and not torch.equal(got, plain)
    assert model.generation_config.max_new_tokens == 4


def test_several_answers_per_question(model, inputs):
    torch.manual_seed(0)
    outputs = model.generate(
        **inputs, num_return_sequences=2, do_sample=True, return_dict_in_generate=True
    )
    length = inputs['input_ids'].shape[1]
    assert len(outputs.sequences) == 6 and len(outputs.masks) == 6
    assert torch.equal(
        outputs.sequences[:, :length], inputs['input_ids'].repeat_interleave(2, dim=0)
    )
    assert len({tuple(row) for row in outputs.sequences[:, length:].tolist()}) > 3


def test_streaming(exported, model, inputs, capsys):
    processor = AutoProcessor.from_pretrained(exported.folder)
    one = {key: value[1:2] for key, value in inputs.items()}
    sequences = model.generate(**one, streamer=TextStreamer(processor.tokenizer))
    assert (
        capsys.readouterr().out.strip()
        == processor.tokenizer.decode(sequences[0, one['input_ids'].shape[1] :]).strip()
    )


@pytest.mark.parametrize(
    'option, message',
    [
        (dict(num_beams=2), 'num_beams'),
        (dict(output_scores=True), 'output_scores'),
        (dict(prompt_lookup_num_tokens=2), 'assisted generation'),
        (dict(penalty_alpha=0.6, top_k=4), 'contrastive search'),
        (dict(cache_implementation='static'), "'static'"),
        (dict(prefill_chunk_size=8), 'prefill_chunk_size'),
        (dict(guidance_scale=2.0), 'guidance_scale'),
    ],
)
def test_what_generation_does_not_do(model, inputs, option, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, **option)


def test_a_model_needs_its_config_only(exported, original):
    config = AutoConfig.from_pretrained(exported.folder)
    config._name_or_path = ''
    model = AutoModelForCausalLM.from_config(config)
    ours = {f'model.{key}': value.shape for key, value in original.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == ours
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_weights_that_a_folder_lacks_are_drawn(exported, tmp_path):
    """Norms too, which have no `reset_parameters`."""
    folder = shutil.copytree(exported.folder, tmp_path / 'hf')
    state = load_file(folder / 'model.safetensors')
    keys = [
        f'model.{key}'
        for key in (
            'backbone.llm.model.norm.weight',
            'backbone.llm.model.layers.0.mlp.up_proj.weight',
            'mask_head.seg_projector.0.weight',
        )
    ]
    kept = {key: value for key, value in state.items() if key not in keys}
    save_file(kept, folder / 'model.safetensors', metadata=dict(format='pt'))
    drawn = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert (drawn[keys[0]] == 1).all()
    for key in keys[1:]:
        assert 0.1 < drawn[key].std() / state[key].std() < 10 and drawn[key].isfinite().all()
    assert all(torch.equal(drawn[key], value) for key, value in kept.items())


def test_adapters_of_peft(exported, inputs, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(exported.folder).eval()
    expected = model.generate(**inputs)
    labels = torch.where(inputs['attention_mask'] == 1, inputs['input_ids'], -100)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM')
    )
    assert torch.equal(adapted.generate(**inputs), expected)
    optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=10.0)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(**inputs, labels=labels).loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    trained = adapted.eval()(**inputs).logits
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**inputs).logits, trained, atol=1e-2)
    again = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(exported.folder), tmp_path)
        .merge_and_unload()
        .eval()
    )
    torch.testing.assert_close(again(**inputs).logits, trained, atol=LOGIT_TOLERANCE, rtol=0)


def test_what_trainers_pass_to_forward(model, inputs):
    labels = torch.where(inputs['attention_mask'] == 1, inputs['input_ids'], -100)
    output = model(**inputs, labels=labels)
    loss, logits = model(
        **inputs, labels=labels, return_dict=False, output_attentions=None, use_cache=False
    )
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    count = (inputs['attention_mask'].sum(1) - 1).sum()
    half = model(**inputs, labels=labels, num_items_in_batch=2 * count).loss
    torch.testing.assert_close(half, output.loss / 2)
    with pytest.raises(TypeError, match='forward: output_hidden_states, inputs_embeds not'):
        model(**inputs, output_hidden_states=True, inputs_embeds=torch.zeros(1))


def test_gradient_checkpointing(model, inputs):
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
    assert model.is_gradient_checkpointing
    model.train()
    model(**inputs, labels=inputs['input_ids']).loss.backward()
    model.gradient_checkpointing_disable()
    model.eval().zero_grad()
