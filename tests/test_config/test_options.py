"""Values of ``--cfg-options``: MMEngine's notation, dicts in Python's, and neither."""

import pytest

from pixelsail_mm.config import parse_options, read_config
from pixelsail_mm.errors import ConfigError


def test_options_are_read_as_mmengine_reads_them():
    assert parse_options(['a.b=1', 'c=[1,2]', 'd=x']) == {'a.b': 1, 'c': [1, 2], 'd': 'x'}
    assert parse_options(['a=(1,(b,None))', 'a.c=b=1']) == {'a': (1, ('b', None)), 'a.c': 'b=1'}
    assert parse_options(['pattern=.*{2}', "text='{input} ?'"]) == {
        'pattern': '.*{2}',
        'text': '{input}?',  # MMEngine drops spaces
    }
    assert parse_options(None) == {}
    with pytest.raises(ConfigError, match='write key=value'):
        parse_options(['a.b'])


@pytest.mark.parametrize(
    'text, value',
    [
        ('[dict(type="X", rate=-1.5)]', [dict(type='X', rate=-1.5)]),
        ('[dict(type=X,on=True,of=None)]', [dict(type='X', on=True, of=None)]),
        ('[1, {"type": "X", "to": (1, [2])}]', [1, dict(type='X', to=(1, [2]))]),
        (' dict(a=dict(b=[]))', dict(a=dict(b=[]))),
        ('[{"a b": "c, d"}]', [{'a b': 'c, d'}]),
        ('{}', {}),
    ],
)
def test_a_dict_is_read_as_python_writes_it(text, value):
    assert parse_options([f'custom_hooks={text}']) == dict(custom_hooks=value)


@pytest.mark.parametrize(
    'text',
    [
        '[dict(type="X"',
        'dict(1)',
        'dict(**a)',
        '[dict(a=open("x"))]',
        '{**a}',
        '{[1]: 2}',
        '[' * 5000 + '{}' + ']' * 5000,
    ],
)
def test_another_expression_with_a_dict_is_one_line(text):
    with pytest.raises(ConfigError, match=r'--cfg-options a=.*written as in Python') as error:
        parse_options([f'a={text}'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['[1,(2]', '[1,2', '(1,2))', '[' * 5000 + ']' * 5000])
def test_single_brackets_are_one_line(text):
    with pytest.raises(ConfigError, match='--cfg-options a=.*brackets'):
        parse_options([f'a={text}'])


def test_a_list_of_parts_takes_the_place_of_the_config_s(repo_root):
    cfg = read_config(
        repo_root / 'tests/test_engine/toy_config.py',
        ['custom_hooks=[dict(type="KillHook", before=3)]', 'default_hooks.mine=dict(type="X")'],
    )
    assert cfg.custom_hooks == [dict(type='KillHook', before=3)]
    assert cfg.default_hooks.mine.type == 'X' and 'logger' in cfg.default_hooks
