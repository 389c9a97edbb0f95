import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pixelsail_mm.checkpoints.checkpoint import (
    apply_weights,
    load_state,
    load_weights,
    save_weights,
)
from pixelsail_mm.errors import CheckpointError


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Model(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.backbone = nn.Embedding(6, width)
        self.head = nn.Linear(width, 6, bias=False)
        self.head.weight = self.backbone.weight
        self.neck = nn.Linear(width, width)
        self.distill = nn.ModuleList([nn.Linear(width, 2)])


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    target, path = tmp_path / 'created_by_pickle', tmp_path / 'evil.pth'
    torch.save(
        dict(state_dict={}, meta=Payload(target)), path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match=r'evil\.pth: holds more than weights.*mkdir'):
        load_state(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), 'the payload must work where code is allowed, or this test is void'


def test_getattr_is_confined_to_the_history_buffer(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (np.ndarray, 'tofile')

    path = tmp_path / 'reach.pth'
    torch.save(dict(state_dict={}, meta=Reach()), path)
    with pytest.raises(CheckpointError, match='holds more than weights'):
        load_state(path)


def repack(source, target, compression=zipfile.ZIP_STORED, **replaced):
    """Copy a file of torch.save with other compression or content of its entries."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, 'w', compression) as write:
        for name in read.namelist():
            write.writestr(name, replaced.get(name.split('/')[-1].split('.')[0], read.read(name)))


def test_array_of_forged_objects_is_not_made(tmp_path):
    """numpy.ndarray(shape, 'O', bytes) takes the bytes for addresses of objects."""

    def text(value):
        return b'X' + len(value).to_bytes(4, 'little') + value

    made = (
        b'cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\n'
        + text(b'O')
        + b'\x85R'
        + b'c_codecs\nencode\n'
        + text(b'A' * 8)
        + text(b'latin1')
        + b'\x86RtR'
    )
    torch.save({}, tmp_path / 'empty.pth')
    repack(
        tmp_path / 'empty.pth',
        tmp_path / 'forged.pth',
        data=b'\x80\x02}' + text(b'meta') + made + b's.',
    )
    assert torch.load(tmp_path / 'empty.pth') == {}
    with pytest.raises(CheckpointError, match="more than weights.*array of 'O' is not allowed"):
        load_state(tmp_path / 'forged.pth')
    numbers = made.replace(text(b'O'), text(b'f8'))
    repack(tmp_path / 'empty.pth', tmp_path / 'numbers.pth', data=b'\x80\x02' + numbers + b'.')
    with pytest.raises(CheckpointError, match='not callable'):
        load_state(tmp_path / 'numbers.pth')


@pytest.mark.parametrize(
    'value',
    [
        np.float16(2),
        np.bool_(True),
        np.uint8(7),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 2)),
        np.array(3.5, dtype=np.float32),
    ],
    ids=str,
)
def test_numbers_of_numpy_come_back(tmp_path, value):
    torch.save(dict(state_dict={}, meta=value), tmp_path / 'm.pth')
    read = load_state(tmp_path / 'm.pth')['meta']
    assert type(read) is type(value) and read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)


def test_what_is_refused_is_named_without_bad_advice(tmp_path):
    torch.save(dict(state_dict={}, when=np.datetime64('2020')), tmp_path / 'date.pth')
    with pytest.raises(CheckpointError, match="holds more than weights.*'M8'"):
        load_state(tmp_path / 'date.pth')
    (tmp_path / 'odd.pth').write_bytes(b'Vx\n.')
    with pytest.raises(CheckpointError, match=r'\(Unsupported operand 86\)') as error:
        load_state(tmp_path / 'odd.pth')
    assert 'set to `False`' not in str(error.value)


def test_users_wish_for_unsafe_loading_does_not_count(tmp_path, monkeypatch):
    """Many set it for other libraries; PyTorch refuses every file when it finds both wishes."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(a=torch.ones(2)), tmp_path / 'm.pth')
    assert set(load_state(tmp_path / 'm.pth')['state_dict']) == {'a'}
    torch.save(dict(a=Payload(tmp_path / 'created')), tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='holds more than weights'):
        load_state(tmp_path / 'evil.pth')
    assert not (tmp_path / 'created').exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


def test_compressed_file_is_read_and_not_mapped(tmp_path):
    """Mapped, the compressed bytes would be taken for values, without any error."""
    source = Model()
    torch.save(source.state_dict(), tmp_path / 'plain.pth')
    repack(tmp_path / 'plain.pth', tmp_path / 'packed.pth', zipfile.ZIP_DEFLATED)
    target = Model()
    load_weights(target, tmp_path / 'packed.pth')
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items()
    )


@pytest.mark.parametrize(
    'content, named',
    [
        (dict(model=dict(a=torch.ones(1)), epoch=3), "'model' in it is a dict"),
        (dict(state_dict=[1]), 'its state_dict is a list'),
        (dict(state_dict=dict(a=3)), "'a' in it is a int"),
        ({1: torch.ones(1)}, '1 in it is a Tensor'),
        (dict(a=torch.ones(2, 2).to_sparse()), 'a is a sparse tensor'),
        (dict(a=torch.ones(2, dtype=torch.complex64)), 'a is a complex tensor'),
        (dict(a=torch.ones(2, device='meta')), 'a is a meta tensor'),
    ],
    ids=str,
)
def test_weights_in_another_place_are_explained(tmp_path, content, named):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=f'{named}.*save dict.state_dict='):
        load_weights(Model(), tmp_path / 'x.pth')


def test_checkpoint_written_by_mmengine_is_readable(tmp_path):
    from mmengine.logging import HistoryBuffer

    path = tmp_path / 'mmengine.pth'
    torch.save(
        dict(
            state_dict=dict(a=torch.ones(2)),
            meta=dict(iter=3, best=np.float64(0.5)),
            message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))),
        ),
        path,
    )
    state = load_state(path)
    assert state['meta'] == dict(iter=3, best=0.5)
    assert state['message_hub']['log_scalars']['loss'].mean() == 1.5


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors', 'plain.pkl.pth'])
@pytest.mark.parametrize('share', [0.0, 0.5, 0.95])
def test_truncated_file_names_itself_and_a_remedy(tmp_path, name, share):
    path = tmp_path / name
    state = dict(a=torch.randn(100, 10))
    if name.endswith('.safetensors'):
        save_weights(state, path)
    elif name.startswith('plain'):
        path.write_bytes(pickle.dumps(dict(a=list(range(1000)))))
    else:
        torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r'not a readable .*again') as error:
        load_state(path)
    assert name in str(error.value)


def test_missing_file_and_foreign_content(tmp_path):
    with pytest.raises(CheckpointError, match='no such file'):
        load_state(tmp_path / 'absent.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list'):
        load_state(tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='neither DeepSpeed nor safetensors'):
        load_state(tmp_path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_survive_the_round_trip_with_ties(tmp_path, suffix):
    source, path = Model(), tmp_path / f'model{suffix}'
    if suffix == '.pth':
        torch.save(dict(state_dict=source.state_dict()), path)
    else:
        save_weights(source.state_dict(), path)
    target = Model()
    report = load_weights(target, path, required_prefixes=[''])
    assert not report.missing and not report.unexpected
    assert len(report.loaded) == len(source.state_dict()) == 6
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert target.head.weight is target.backbone.weight


def test_tied_tensor_is_stored_once(tmp_path):
    from safetensors import safe_open

    save_weights(Model().state_dict(), tmp_path / 'm.safetensors')
    with safe_open(tmp_path / 'm.safetensors', 'pt') as file:
        assert ('head.weight' in file.keys()) != ('backbone.weight' in file.keys())


def test_folder_of_shards(tmp_path):
    state = Model().state_dict()
    save_weights({'neck.weight': state['neck.weight']}, tmp_path / 'a.safetensors')
    save_weights({'neck.bias': state['neck.bias']}, tmp_path / 'b.safetensors')
    assert set(load_state(tmp_path)['state_dict']) == {'neck.weight', 'neck.bias'}


def test_folder_with_one_weight_in_two_files_is_refused(tmp_path):
    """Two checkpoints lie there: the last one read would win."""
    for name in ('iter_1', 'iter_2'):
        save_weights(dict(x=torch.ones(2)), tmp_path / f'{name}.safetensors')
    with pytest.raises(CheckpointError, match='x is in iter_2.safetensors and in another file'):
        load_state(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text(
        json.dumps(dict(weight_map=dict(x='iter_1.safetensors')))
    )
    assert set(load_state(tmp_path)['state_dict']) == {'x'}


def test_numbered_shards_are_counted_without_an_index(tmp_path):
    for number in (1, 3):
        save_weights(
            {f'x{number}': torch.ones(2)}, tmp_path / f'model-0000{number}-of-00003.safetensors'
        )
    with pytest.raises(CheckpointError, match='2 of the files model-.*-of-00003 are there'):
        load_state(tmp_path)


@pytest.mark.parametrize(
    'index',
    [
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
        '{"weight_map": {"x": 1}}',
        '{"weight_map": {"x": ["a"]}}',
        '{"weight_map"',
        '[' * 100_000,
        '{"other": 1}',
    ],
)
def test_incomplete_folder_of_shards_is_refused(tmp_path, index):
    save_weights({'x': torch.ones(2)}, tmp_path / 'a.safetensors')
    (tmp_path / 'model.safetensors.index.json').write_text(index)
    with pytest.raises(CheckpointError, match='b.safetensors|list of shards'):
        load_state(tmp_path)


def test_tie_counts_as_loaded_and_distill_may_be_missing():
    state = Model().state_dict()
    for key in ('head.weight', 'distill.0.weight', 'distill.0.bias'):
        state.pop(key)
    report = apply_weights(Model(), state, 'x.pth')
    assert report.missing == ['distill.0.weight', 'distill.0.bias']
    assert 'head.weight' in report.loaded


def test_missing_required_key_is_an_error():
    state = Model().state_dict()
    state.pop('neck.weight')
    with pytest.raises(CheckpointError, match=r'x\.pth: 1 weights .* missing: neck\.weight'):
        apply_weights(Model(), state, 'x.pth')
    assert apply_weights(Model(), state, 'x.pth', required_prefixes=['backbone.']).missing == [
        'neck.weight'
    ]


def test_foreign_keys_point_to_the_converter():
    with pytest.raises(CheckpointError, match='official_to_mm'):
        apply_weights(Model(), dict(mllm=torch.ones(1)), 'official.pth')


def test_other_sizes_are_an_error_and_other_shapes_are_not():
    with pytest.raises(CheckpointError, match=r'other sizes than the model, e\.g\. backbone'):
        apply_weights(Model(width=4), Model(width=8).state_dict(), 'wide.pth')
    state = Model().state_dict()
    state['neck.weight'] = state['neck.weight'].view(2, 2, 4)
    model = Model()
    report = apply_weights(model, state, 'conv.pth')
    assert report.reshaped == [('neck.weight', (2, 2, 4), (4, 4))]
    assert torch.equal(model.neck.weight, state['neck.weight'].view(4, 4))


@pytest.mark.parametrize(
    'old, new, same',
    [
        ((2, 2, 4), (4, 4), True),
        ((4, 4), (2, 2, 4), True),
        ((4, 1, 1), (4,), True),
        ((2, 8), (8, 2), False),
        ((16,), (2, 8), True),
        ((3, 4), (2, 6), False),
    ],
)
def test_values_are_not_shuffled(old, new, same):
    """Shapes of one size are the same weight only if dimensions were joined or parted."""
    model, values = nn.Module(), torch.randn(old)
    model.weight = nn.Parameter(torch.zeros(new))
    if same:
        apply_weights(model, dict(weight=values), 'x')
        assert torch.equal(model.weight.flatten(), values.flatten())
    else:
        with pytest.raises(CheckpointError, match='1 tensors have other sizes .* weight'):
            apply_weights(model, dict(weight=values), 'x')


def test_prefix_of_a_wrapper_is_dropped():
    state = {f'module.{key}': value for key, value in Model().state_dict().items()}
    assert not apply_weights(Model(), state, 'ddp.pth').unexpected


def test_table_lists_what_needs_a_look():
    state = Model().state_dict()
    state.pop('distill.0.bias')
    state['extra.weight'] = torch.ones(1)
    table = apply_weights(Model(), state, 'x.pth').table()
    assert 'missing: distill.0.bias' in table
    assert 'unexpected: extra.weight' in table
    row = next(line.split() for line in table.splitlines() if line.startswith('distill'))
    assert row == ['distill', '1', '1', '0', '0', '0', '0']
