"""OnnxExpert on small real ONNX models made here; ISNet where it has been downloaded."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts import OnnxExpert
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

ISNET = Path(os.environ.get('PIXELSAIL_DATA', 'data')) / 'experts/isnet.onnx'


def sample(height=8, width=8, seed=0):
    result = PixelDataSample(metainfo=dict(sample_id='s'))
    result.image = torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return result


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(
    path,
    nodes,
    outputs,
    initializers,
    size=('H', 'W'),
    dtype=TensorProto.FLOAT,
    inputs=None,
    **options,
):
    """Write a model of one image ``x`` with named outputs of unknown shape."""
    x = helper.make_tensor_value_info('x', dtype, [1, 3, *size])
    graph = helper.make_graph(
        nodes,
        'g',
        inputs or [x],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        initializers,
    )
    # Outputs without a type are what the expert itself relies on; here onnx wants to check them.
    for value in graph.output:
        value.type.tensor_type.elem_type = dtype
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, str(path), **options)
    return str(path)


def pooling(path, size=('H', 'W'), **options):
    """2x2 means ``means`` (internal), then ``out``, their sum over the channels.

    ``dead`` depends on another, huge weight.
    """
    weight = np.ones((1, 3, 1, 1), np.float32)
    return save(
        path,
        [
            helper.make_node('AveragePool', ['x'], ['means'], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node('Conv', ['means', 'w'], ['out']),
            helper.make_node('Conv', ['means', 'unused'], ['dead']),
        ],
        ['out', 'dead'],
        [constant('w', weight), constant('unused', np.ones((64, 3, 1, 1), np.float32))],
        size,
        **options,
    )


def means(image):
    return torch.nn.functional.avg_pool2d(image.float(), 2)


def test_output_of_the_graph(tmp_path):
    one = sample()
    [read] = OnnxExpert(pooling(tmp_path / 'a.onnx'), 'out', max_value=255, multiple=2)([one])
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, means(one.image).sum(0, keepdim=True))


def test_tensor_inside_the_graph_without_touching_the_file(tmp_path):
    file = Path(pooling(tmp_path / 'a.onnx'))
    before, one = file.read_bytes(), sample()
    [read] = OnnxExpert(str(file), 'means', max_value=255, multiple=2)([one])
    torch.testing.assert_close(read, means(one.image))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_only_what_the_tensor_needs_is_loaded(tmp_path):
    from pixelsail_mm.models.experts.onnx_graph import subgraph

    model = onnx.load_from_string(subgraph(Path(pooling(tmp_path / 'a.onnx')), 'out'))
    assert [node.output[0] for node in model.graph.node] == ['means', 'out']
    assert [weight.name for weight in model.graph.initializer] == ['w']


def test_branches_keep_what_they_see_of_the_graph_around_them(tmp_path):
    """The branches of If read ``means`` and the weight without naming them as inputs."""

    def branch(name, weight):
        node = helper.make_node('Mul', ['means', weight], [name])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    path = save(
        tmp_path / 'a.onnx',
        [
            helper.make_node('AveragePool', ['x'], ['means'], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node(
                'If',
                ['yes'],
                ['out'],
                then_branch=branch('then', 'two'),
                else_branch=branch('otherwise', 'three'),
            ),
        ],
        ['out'],
        [
            constant('yes', np.array(True)),
            constant('two', np.float32(2)),
            constant('three', np.float32(3)),
        ],
    )
    one = sample()
    [read] = OnnxExpert(path, 'out', max_value=255, multiple=2)([one])
    torch.testing.assert_close(read, 2 * means(one.image))


def test_weights_in_files_beside_the_model(tmp_path):
    """How models above 2 GB are kept; the folder is not the current one."""
    (tmp_path / 'big').mkdir()
    path = pooling(
        tmp_path / 'big/a.onnx', save_as_external_data=True, location='a.data', size_threshold=0
    )
    one = sample()
    expert = OnnxExpert(path, 'out', max_value=255, multiple=2)
    torch.testing.assert_close(expert([one])[0], means(one.image).sum(0, keepdim=True))
    old = expert.fingerprint()['weights_sha256']
    data = np.fromfile(tmp_path / 'big/a.data', np.float32)
    data[:3] = 2
    data.tofile(tmp_path / 'big/a.data')
    assert OnnxExpert(path, 'out').fingerprint()['weights_sha256'] != old


def test_preprocessing_by_hand(tmp_path):
    """One black and one white pixel; blue is the first channel of ``bgr``."""
    one = sample(1, 2)
    one.image = torch.tensor([[[0, 255]], [[0, 0]], [[0, 51]]], dtype=torch.uint8)
    path = save(tmp_path / 'a.onnx', [helper.make_node('Identity', ['x'], ['out'])], ['out'], [])
    expert = OnnxExpert(
        path, 'out', mean=[0.5, 0.25, 0.0], std=[0.5, 1.0, 2.0], channels='bgr', multiple=1
    )
    torch.testing.assert_close(
        expert([one])[0], torch.tensor([[[-1.0, -0.6]], [[-0.25, -0.25]], [[0.0, 0.5]]])
    )


def test_stretched_or_padded(tmp_path):
    """A row of a long image at half its size; the padding is cut off again."""
    path = save(tmp_path / 'a.onnx', [helper.make_node('Identity', ['x'], ['out'])], ['out'], [])
    one = sample(4, 16)
    stretched = OnnxExpert(path, 'out', size=8)([one])[0]
    padded = OnnxExpert(path, 'out', size=8, keep_ratio=True)([one])[0]
    assert stretched.shape == (3, 8, 8) and padded.shape == (3, 2, 8)
    half = (
        np.asarray(
            Image.fromarray(one.image.permute(1, 2, 0).numpy()).resize(
                (8, 2), Image.Resampling.BILINEAR
            )
        ).transpose(2, 0, 1)
        / 255
    )
    torch.testing.assert_close(padded, torch.from_numpy(half).float())


def test_padded_image_that_ends_inside_a_cell_is_not_stretched(tmp_path):
    """Of 16 columns of cells the image fills 10.5; a cut at 10 would move all of them."""
    ramp = PixelDataSample(metainfo=dict(sample_id='ramp'))
    ramp.image = (torch.arange(66) * 3).to(torch.uint8).expand(3, 100, 66).contiguous()
    expert = OnnxExpert(
        pooling(tmp_path / 'a.onnx'), 'means', size=32, keep_ratio=True, max_value=255
    )
    [read] = expert([ramp])
    enlarged = torch.nn.functional.interpolate(read[None], size=(100, 66), mode='bilinear')[0]
    inside = slice(8, 52)  # the last cells mix with the padding
    assert (enlarged - ramp.image)[..., inside].abs().max() < 3  # one pixel of the ramp


def test_dynamic_input_is_rounded_up(tmp_path):
    path = pooling(tmp_path / 'a.onnx')
    assert OnnxExpert(path, 'means', multiple=8)([sample(9, 17)])[0].shape == (3, 8, 12)
    kept = OnnxExpert(path, 'means', multiple=8, keep_ratio=True, max_value=255)
    one = sample(8, 18)
    torch.testing.assert_close(kept([one])[0], means(one.image))


def test_fixed_input_sets_the_size(tmp_path):
    path = pooling(tmp_path / 'a.onnx', size=(6, 10))
    assert OnnxExpert(path, 'means')([sample()])[0].shape == (3, 3, 5)
    with pytest.raises(ConfigError, match=r'size=8: .*a.onnx takes \[1, 3, 6, 10\]'):
        OnnxExpert(path, 'means', size=8)


def test_layouts_agree(tmp_path):
    """One map as (1,C,h,w), (1,h,w,C) and as tokens with a class token in front."""
    nodes = [
        helper.make_node('AveragePool', ['x'], ['nchw'], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node('Transpose', ['nchw'], ['nhwc'], perm=[0, 2, 3, 1]),
        helper.make_node('Reshape', ['nhwc', 'shape'], ['patches']),
        helper.make_node('Concat', ['class', 'patches'], ['tokens'], axis=1),
    ]
    path = save(
        tmp_path / 'a.onnx',
        nodes,
        ['tokens'],
        [
            constant('shape', np.array([1, -1, 3])),
            constant('class', np.zeros((1, 1, 3), np.float32)),
        ],
    )
    one = sample(4, 6)
    expected = OnnxExpert(path, 'nchw', multiple=2)([one])[0]
    for output, options in (
        ('nhwc', dict(layout='nhwc')),
        ('patches', dict(layout='tokens', patch_size=2)),
        ('tokens', dict(layout='tokens', patch_size=2, prefix_tokens=1)),
    ):
        torch.testing.assert_close(
            OnnxExpert(path, output, multiple=2, **options)([one])[0], expected
        )
    with pytest.raises(ConfigError, match='2x3 patches.*tokens has 7 tokens'):
        OnnxExpert(path, 'tokens', multiple=2, layout='tokens', patch_size=2)([one])


@pytest.mark.parametrize('dtype', [TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_input_types(tmp_path, dtype):
    path = save(
        tmp_path / 'a.onnx',
        [helper.make_node('Identity', ['x'], ['out'])],
        ['out'],
        [],
        dtype=dtype,
    )
    one = sample()
    assert torch.equal(
        OnnxExpert(path, 'out', max_value=255, multiple=1)([one])[0], one.image.float()
    )


def test_channels_last_input(tmp_path):
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, 'H', 'W', 3])
    path = save(
        tmp_path / 'a.onnx', [helper.make_node('Identity', ['x'], ['out'])], ['out'], [], inputs=[x]
    )
    one = sample(4, 6)
    [read] = OnnxExpert(path, 'out', max_value=255, multiple=1, layout='nhwc')([one])
    assert torch.equal(read, one.image.float())


def test_text_only_samples_and_the_registry(tmp_path):
    expert = MODELS.build(dict(type='OnnxExpert', model=pooling(tmp_path / 'a.onnx'), output='out'))
    text = PixelDataSample(metainfo=dict(sample_id='t', img_path=None))
    nothing, read = expert([text, sample()])
    assert nothing is None and read.ndim == 3
    assert expert.to('cpu') is expert


def test_autocast_of_the_student_changes_nothing(tmp_path):
    expert, one = OnnxExpert(pooling(tmp_path / 'a.onnx'), 'out'), sample()
    exact = expert([one])[0]
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(expert([one])[0], exact)


@pytest.mark.gpu
def test_follows_the_model_to_the_gpu(tmp_path):
    """With or without a CUDA provider in onnxruntime, the map arrives where it is needed."""
    expert, one = OnnxExpert(pooling(tmp_path / 'a.onnx'), 'out'), sample()
    on_cpu = expert([one])[0]
    on_gpu = expert.to(torch.device('cuda'))([one])[0]
    assert on_gpu.device.type == 'cuda'
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)


class TestMistakes:
    """Each ends in a message that names key and remedy."""

    @pytest.fixture
    def file(self, tmp_path):
        return pooling(tmp_path / 'a.onnx')

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='nowhere.onnx does not exist'):
            OnnxExpert(str(tmp_path / 'nowhere.onnx'), 'out')

    def test_truncated_file(self, file):
        content = Path(file).read_bytes()
        Path(file).write_bytes(content[: len(content) // 2])
        with pytest.raises(ConfigError, match='a.onnx is not an ONNX model, or only a part'):
            OnnxExpert(file, 'out')

    def test_other_file(self, tmp_path):
        (tmp_path / 'a.onnx').write_text('<html>404</html>')
        with pytest.raises(ConfigError, match='a.onnx is not an ONNX model'):
            OnnxExpert(str(tmp_path / 'a.onnx'), 'out')

    def test_lost_weights(self, tmp_path):
        path = pooling(
            tmp_path / 'b.onnx', save_as_external_data=True, location='b.data', size_threshold=0
        )
        (tmp_path / 'b.data').unlink()
        with pytest.raises(ConfigError, match='onnxruntime cannot run.*b.data'):
            OnnxExpert(path, 'out')

    def test_unknown_output_lists_the_near_ones(self, file):
        with pytest.raises(
            ConfigError, match="no tensor 'mean'; near it are means, dead; its outputs are out"
        ):
            OnnxExpert(file, 'mean')

    def test_wrong_rank(self, tmp_path):
        path = save(
            tmp_path / 'b.onnx', [helper.make_node('Flatten', ['x'], ['flat'])], ['flat'], []
        )
        with pytest.raises(ConfigError, match=r'flat of .*b.onnx has the shape \(1, 3072\)'):
            OnnxExpert(path, 'flat')([sample()])

    def test_two_inputs(self, tmp_path):
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4])
            for name in ('x', 'y')
        ]
        path = save(
            tmp_path / 'b.onnx',
            [helper.make_node('Add', ['x', 'y'], ['out'])],
            ['out'],
            [],
            inputs=inputs,
        )
        with pytest.raises(ConfigError, match=r'takes x .*, y .*takes one image'):
            OnnxExpert(path, 'out')

    def test_size_that_the_model_cannot_do(self, tmp_path):
        path = save(
            tmp_path / 'b.onnx',
            [helper.make_node('Add', ['x', 'w'], ['out'])],
            ['out'],
            [constant('w', np.ones((1, 3, 6, 6), np.float32))],
        )
        with pytest.raises(ConfigError, match='fails on an input of 32x32'):
            OnnxExpert(path, 'out')([sample()])

    @pytest.mark.parametrize(
        'wrong',
        [
            dict(resample='area'),
            dict(layout='hwc'),
            dict(channels='grey'),
            dict(providers=['None']),
            dict(layout='tokens'),
        ],
    )
    def test_unknown_arguments(self, file, wrong):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            OnnxExpert(file, 'out', **wrong)

    @pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
    def test_absent_packages(self, file, monkeypatch, package):
        """Stands in for an environment without the package: its import is blocked."""
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf'package {package} .*pixelsail_mm\[experts\]'):
            OnnxExpert(file, 'out')


def test_fingerprint_says_what_the_features_depend_on(tmp_path):
    file = Path(pooling(tmp_path / 'a.onnx', size=(8, 8)))
    expert = OnnxExpert(str(file), 'out', mean=(128, 128, 128), max_value=255)
    found = expert.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found['weights_sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found['preprocessing']['size'] == [8, 8]
    moved = file.rename(tmp_path / 'b.onnx')
    assert OnnxExpert(str(moved), 'out', mean=[128.0] * 3, max_value=255).fingerprint() == found
    for other in (dict(output='means'), dict(keep_ratio=True), dict(std=[2, 2, 2])):
        changed = OnnxExpert(
            **{**dict(model=str(moved), output='out', mean=[128] * 3, max_value=255), **other}
        )
        assert changed.fingerprint() != found
    told = OnnxExpert.fingerprint_of(model=str(moved), output='out', mean=[128] * 3, max_value=255)
    found['preprocessing']['size'] = None  # only the model itself tells it
    assert told == found


def test_weights_that_are_only_partly_here_are_not_compared(tmp_path):
    """A training from a cache goes on when the big file beside the model was left elsewhere."""
    path = pooling(
        tmp_path / 'a.onnx', save_as_external_data=True, location='a.data', size_threshold=0
    )
    assert OnnxExpert.fingerprint_of(model=path, output='out')['weights_sha256']
    (tmp_path / 'a.data').unlink()
    assert OnnxExpert.fingerprint_of(model=path, output='out')['weights_sha256'] is None


@pytest.mark.slow
@pytest.mark.skipif(
    not ISNET.is_file(), reason=f'{ISNET} is not there: python tools/misc/download.py isnet'
)
@pytest.mark.parametrize(
    'output, shape', [('input.832', (256, 64, 64)), ('input.948', (128, 128, 128))]
)
def test_isnet(output, shape):
    """The real model: dense, finite and different for different photos."""
    expert = OnnxExpert(str(ISNET), output, mean=[128.0] * 3, std=[256.0] * 3, max_value=255)
    assert expert.size == (1024, 1024)
    first, second = expert([sample(seed=1), sample(seed=2)])
    assert first.shape == shape and first.isfinite().all()
    assert not torch.allclose(first, second)
