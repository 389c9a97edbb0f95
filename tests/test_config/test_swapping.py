"""What an override with another type inherits."""

import pytest
from mmengine.config import Config

from pixelsail_mm.config import read_config
from pixelsail_mm.config.swapping import accepted_keys
from pixelsail_mm.registry import MODELS


class Wide:
    def __init__(self, width, depth=1, gain=1.0):
        self.settings = dict(width=width, depth=depth, gain=gain)


class Narrow:
    def __init__(self, width, slope=0.0, inner=None):
        self.settings = dict(width=width, slope=slope)


class Child(Narrow):
    def __init__(self, colour='red', **kwargs):
        super().__init__(**kwargs)


class Picky(Child):
    refused_options = frozenset({'slope'})


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    MODELS.import_from_location()
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
    for part in (Wide, Narrow, Child, Picky):
        MODELS.register_module(module=part)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    write('base.py', "model = dict(part=dict(type='Wide', width=4, depth=2, gain=3.0))\n")
    return write


def child(write, text):
    return read_config(write('child.py', f"_base_ = './base.py'\n{text}\n")).model.part.to_dict()


def test_keys_that_the_new_type_takes_stay_and_the_others_are_said(write, lines):
    part = child(write, "model = dict(part=dict(type='Narrow', slope=0.5))")
    assert part == dict(type='Narrow', width=4, slope=0.5)
    assert lines == ['model.part: Narrow in the place of Wide does not take depth, gain: left out']


def test_the_command_line_swaps_as_files_do(write, lines):
    cfg = read_config(
        write('base.py', "model = [dict(type='Wide', width=4, depth=2)]"), ['model.0.type=Narrow']
    )
    assert cfg.model[0].to_dict() == dict(type='Narrow', width=4)
    assert len(lines) == 1 and lines[0].startswith('model.0: Narrow')


def test_own_keys_of_the_override_are_never_left_out(write, lines):
    part = child(write, "model = dict(part=dict(type='Narrow', depth=5))")
    assert part == dict(type='Narrow', width=4, depth=5)
    assert 'gain: left out' in lines[0]
    with pytest.raises(TypeError, match='depth'):
        MODELS.build(part)


@pytest.mark.parametrize('kind', ['Wide', 'pixelsail_mm.Wide'])
def test_the_same_type_again_is_no_swap(write, lines, kind):
    part = child(write, f"model = dict(part=dict(type='{kind}', depth=5, typo=1))")
    assert part == dict(type='Wide', width=4, depth=5, gain=3.0, typo=1) and lines == []


def test_delete_inherits_nothing(write, lines):
    part = child(write, "model = dict(part=dict(_delete_=True, type='Narrow', slope=1.0))")
    assert part == dict(type='Narrow', slope=1.0) and lines == []


def test_delete_inherits_nothing_in_a_list_either(write, lines):
    cfg = read_config(
        write('base.py', "model = [dict(type='Wide', width=4), dict(type='Wide', width=5)]"),
        ['model.1._delete_=True', 'model.1.type=Narrow', 'model.1.slope=1.0'],
    )
    assert [part.to_dict() for part in cfg.model] == [
        dict(type='Wide', width=4),
        dict(type='Narrow', slope=1.0),
    ]
    assert lines == []


def test_keys_survive_a_swap_there_and_back(write, lines):
    write('middle.py', "_base_ = './base.py'\nmodel = dict(part=dict(type='Narrow', slope=0.5))\n")
    file = write('child.py', "_base_ = './middle.py'\nmodel = dict(part=dict(gain=2.0))\n")
    assert read_config(file, ['model.part.type=Wide']).model.part.to_dict() == dict(
        type='Wide', width=4, depth=2, gain=2.0
    )
    assert lines == ['model.part: Wide in the place of Narrow does not take slope: left out']


def test_a_later_file_that_sets_a_key_again_means_it(write):
    write('middle.py', "_base_ = './base.py'\nmodel = dict(part=dict(type='Narrow'))\n")
    file = write('child.py', "_base_ = './middle.py'\nmodel = dict(part=dict(gain=2.0))\n")
    assert read_config(file).model.part.to_dict() == dict(type='Narrow', width=4, gain=2.0)


def test_unknown_types_keep_everything_for_the_message_of_their_build(write, lines):
    part = child(write, "model = dict(part=dict(type='Nowhere'))")
    assert part == dict(type='Nowhere', width=4, depth=2, gain=3.0) and lines == []


def test_a_type_of_a_module_that_the_config_imports(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(
        'late_part.py',
        'from pixelsail_mm.registry import MODELS\n\n\n'
        '@MODELS.register_module()\ndef late(width):\n    return width\n',
    )
    part = child(
        write, "custom_imports = dict(imports=['late_part'])\nmodel = dict(part=dict(type='late'))"
    )
    assert part == dict(type='late', width=4)


def test_parts_in_parts(write):
    write(
        'base.py',
        "model = dict(part=dict(type='Wide', width=4, inner=dict(type='Wide', "
        'width=1, depth=2)))\n',
    )
    part = child(write, "model = dict(part=dict(type='Narrow', inner=dict(type='Child')))")
    assert part == dict(type='Narrow', width=4, inner=dict(type='Child', width=1))


def test_optimizer_wrappers_keep_what_their_builder_reads(write):
    write(
        'base.py',
        "optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', "
        "paramwise_cfg=dict(a=1), optimizer=dict(type='AdamW', lr=1.0, betas=(0.9, 0.98)))\n",
    )
    cfg = read_config(
        write('child.py', "_base_ = './base.py'\n"),
        ['optim_wrapper.type=OptimWrapper', 'optim_wrapper.optimizer.type=SGD'],
    )
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', paramwise_cfg=dict(a=1), optimizer=dict(type='SGD', lr=1.0)
    )


def test_mmengine_itself_merges_as_ever(write):
    read_config(write('base.py', 'model = dict()'))
    cfg = Config(dict(model=dict(type='Wide', width=1)))
    cfg.merge_from_dict({'model.type': 'Narrow'})
    assert cfg.model.to_dict() == dict(type='Narrow', width=1)


@pytest.mark.parametrize(
    'part, keys',
    [
        (Wide, {'width', 'depth', 'gain'}),
        (Child, {'colour', 'width', 'slope', 'inner'}),
        (Picky, {'colour', 'width', 'inner'}),
        (lambda a, *, b: None, {'a', 'b'}),
        (lambda **kwargs: None, None),
        (None, None),
    ],
)
def test_accepted_keys(part, keys):
    assert accepted_keys(part) == keys
