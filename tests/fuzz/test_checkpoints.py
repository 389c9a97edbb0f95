"""Checkpoints of every format with damaged bytes or content."""

import io
import json
import random
import shutil
from collections import OrderedDict

import pytest
import torch
from hypothesis import note

from pixelsail_mm.checkpoints.checkpoint import load_state, load_weights, save_weights
from pixelsail_mm.checkpoints.formats.safetensors_files import INDEX_NAME, write_folder
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from tests.fuzz.cases import Unsaid, fuzz, outcome
from tests.fuzz.defects import damage, damage_bytes, damage_text
from tests.helpers.checkpoint_cases import tiny_pixel_sail

PROCESSES = 2


@pytest.fixture(scope='module')
def build():
    """Give the model, which a failing case would print on a page."""
    model = tiny_pixel_sail(tied=True)
    return lambda: model


@pytest.fixture(scope='module')
def model(build):
    return build()


@pytest.fixture(scope='module')
def state(model):
    """Weights of the model, copied."""
    return Unsaid({key: value.clone() for key, value in model.state_dict().items()})


def _training(state):
    """What a training saves, in small."""
    return dict(
        meta=dict(epoch=1, iter=7, cfg='model = 1', seed=0, dataset_meta=dict(classes=['a'])),
        state_dict=OrderedDict(state),
        message_hub=dict(log_scalars=OrderedDict(), runtime_info=OrderedDict(iter=7)),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=0.1)]),
        param_schedulers=[dict(last_step=7, _global_step=8)],
    )


def _zero(state, stage):
    """Files of a DeepSpeed checkpoint of two processes: name -> content."""
    shapes = OrderedDict((key, value.shape) for key, value in state.items())
    flat = torch.cat([value.flatten().float() for value in state.values()])
    common = dict(param_shapes=[shapes], shared_params={}, buffer_names=[], mp_world_size=1)
    files = {}
    for rank in range(PROCESSES):
        if stage < 3:
            padded = torch.cat([flat, flat.new_zeros(-len(flat) % (2 * PROCESSES))])
            part = {'single_partition_of_fp32_groups': [padded.chunk(PROCESSES)[rank].clone()]}
        else:
            parts = []
            for value in state.values():
                values = value.flatten().float()
                size = -(-len(values) // PROCESSES)
                padded = torch.cat([values, values.new_zeros(size * PROCESSES - len(values))])
                parts.append(padded[rank * size : (rank + 1) * size])
            part = {'fp32_flat_groups': [torch.cat(parts)]}
        optimizer = dict(part, zero_stage=stage, partition_count=PROCESSES, base_optimizer_state={})
        name = f'zero_pp_rank_{rank}_mp_rank_00'
        files[f'{name}_optim_states.pt'] = dict(optimizer_state_dict=optimizer)
        if stage == 3 or rank == 0:
            module = state if stage < 3 else {}
            name = name if stage == 3 else 'mp_rank_00'
            files[f'{name}_model_states.pt'] = dict(common, module=OrderedDict(module))
    return files


def _bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _write_all(model, state, root):
    """Folder of each format below ``root``, with what must be given to load it."""
    for name in ('single', 'file', 'old', 'shards', 'zero2', 'zero3'):
        (root / name).mkdir()
    metadata = vocabulary_metadata(model.tokenizer)
    save_weights(model.state_dict(), root / 'single/model.safetensors', metadata)
    model.tokenizer.save_pretrained(root / 'file/tokenizer')
    (root / 'file/iter_7.pth').write_bytes(_bytes(_training(state)))
    old = _bytes(dict(state), _use_new_zipfile_serialization=False)
    (root / 'old/pytorch_model.bin').write_bytes(old)
    write_folder(model.state_dict(), root / 'shards', 20_000, metadata)
    assert (root / 'shards' / INDEX_NAME).is_file()
    for stage in (2, 3):
        for name, content in _zero(state, stage).items():
            (root / f'zero{stage}' / name).write_bytes(_bytes(content))
    return {
        'single': 'single/model.safetensors',
        'file': 'file/iter_7.pth',
        'old': 'old',
        'shards': 'shards',
        'zero2': 'zero2',
        'zero3': 'zero3',
    }


@pytest.fixture(scope='module')
def valid(model, state, tmp_path_factory):
    """Root folder of all formats; format -> path to load; (format, file) -> content to damage."""
    root = tmp_path_factory.mktemp('checkpoints')
    paths = _write_all(model, state, root)
    contents = {('file', 'iter_7.pth'): _training(state), ('old', 'pytorch_model.bin'): dict(state)}
    for stage in (2, 3):
        contents |= {(f'zero{stage}', name): c for name, c in _zero(state, stage).items()}
    for path in paths.values():
        load_weights(model, root / path)
    yield Unsaid(root=root, paths=paths, contents=contents)
    shutil.rmtree(root)


def _other_tensor(value, rng):
    """A tensor that is not the one expected."""
    return rng.choice(
        (
            lambda: value.to(rng.choice((torch.float16, torch.int64, torch.complex64, torch.bool))),
            lambda: value[:0],
            lambda: value.flatten(),
            lambda: value.reshape(*value.shape, 1),
            lambda: value.reshape(-1)[0],
            lambda: value.t() if value.dim() == 2 else value[..., ::2],
            lambda: value.reshape(-1)[:1].expand(1000),
            lambda: torch.full_like(value, rng.choice((float('nan'), float('inf'), 1e30))),
            lambda: value.to_sparse(),
            lambda: value.to('meta'),
            lambda: torch.nn.Parameter(value),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        )
    )()


def _tensors(value, found):
    if isinstance(value, dict):
        parts = value.items()
    else:
        parts = enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if isinstance(part, torch.Tensor):
            found.append((value, key))
        else:
            _tensors(part, found)
    return found


def _damage_content(content, rng):
    content = _copied(content)
    tensors = _tensors(content, [])
    if tensors and rng.random() < 0.3:
        holder, key = rng.choice(tensors)
        old = holder[key]
        holder[key] = _other_tensor(old, rng)
        new = holder[key]
        return content, f'{key}: {tuple(old.shape)} -> {new.dtype} {tuple(new.shape)} {new.layout}'
    content, _, said = damage(content, rng)
    return content, said


def _copied(content):
    """The same containers of their own; tensors shared."""
    if isinstance(content, dict):
        return type(content)((key, _copied(value)) for key, value in content.items())
    return [*map(_copied, content)] if type(content) is list else content


def _damage_header(content, rng):
    """Damage the JSON header of a safetensors file."""
    size = int.from_bytes(content[:8], 'little')
    header, _, said = damage(json.loads(content[8 : 8 + size]), rng)
    if rng.random() < 0.3:  # an entry in it that is JSON itself
        header = json.loads(content[8 : 8 + size])
        key = rng.choice([key for key in header['__metadata__'] if key != 'format'])
        inner, _, said = damage(json.loads(header['__metadata__'][key]), rng)
        header['__metadata__'][key] = json.dumps(inner)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + content[8 + size :], said


def _damaged(folder, file, valid, rng):
    root, contents = valid['root'], valid['contents']
    whole = (root / folder / file).read_bytes()
    if rng.random() < 0.5:
        if file.endswith('.json'):
            content, said = damage_text(whole, rng)
        else:
            content, said = damage_bytes(whole, rng)
    elif (folder, file) in contents:
        value, said = _damage_content(contents[folder, file], rng)
        content = _bytes(value)
    elif file.endswith('.json'):
        value, _, said = damage(json.loads(whole), rng)
        content = json.dumps(value).encode()
    else:
        content, said = _damage_header(whole, rng)
    return whole, content, f'{folder}/{file}: {said}'


@fuzz
def test_damaged_checkpoints(build, state, valid, seed):
    model = build()
    rng = random.Random(seed)
    root, paths = valid['root'], valid['paths']
    folder = rng.choice(list(paths))
    file = rng.choice([path.name for path in sorted((root / folder).iterdir()) if path.is_file()])
    whole, content, said = _damaged(folder, file, valid, rng)
    note(said)
    load = rng.choice((lambda path: load_weights(model, path), load_state))
    try:
        (root / folder / file).write_bytes(content)
        result = outcome(lambda: load(root / paths[folder]), str(root / folder))
    finally:
        (root / folder / file).write_bytes(whole)
    own = model.state_dict()
    if isinstance(result, Exception):
        changed = [key for key, value in state.items() if not torch.equal(own[key], value)]
        assert not changed, f'the model was changed before the error: {changed[:3]}'
    else:
        assert own.keys() == state.keys()
        for key, value in state.items():
            own[key].copy_(value)
