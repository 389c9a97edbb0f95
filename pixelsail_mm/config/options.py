"""The values of ``--cfg-options``: MMEngine's own short notation, and Python's for parts."""

from __future__ import annotations

import argparse
import ast
import re
from typing import Any

from mmengine.config import DictAction

from pixelsail_mm.errors import ConfigError

#: What only Python's notation has: a dict, perhaps in lists. Other texts may hold a brace, too.
_HAS_DICT = re.compile(r'\s*[\[(].*(\bdict\(|\{)|\s*(dict\(|\{)', re.DOTALL)


def parse_options(pairs: list[str] | None) -> dict:
    """Read ``key=value`` arguments.

    A value with a dict in it, such as ``[dict(type="EMAHook")]``, is read as Python writes it;
    bare words in it are texts. All others are read as MMEngine's ``DictAction`` does.

    Args:
        pairs: E.g. ``['train_cfg.max_iters=20', 'model.distill=[]']``.

    Raises:
        ConfigError: An argument is not of this form.
    """
    found = {}
    for pair in pairs or []:
        key, separator, value = pair.partition('=')
        if not separator or not key:
            raise ConfigError(f'--cfg-options {pair}: write key=value')
        found[key] = _with_dicts(pair, value) if _HAS_DICT.match(value) else _plain(pair)
    return found


def _plain(pair: str) -> Any:
    """Value of an argument in MMEngine's notation."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--option', nargs='+', action=DictAction)
    try:
        (value,) = parser.parse_args([f'--option={pair}']).option.values()
    except (AssertionError, RecursionError) as error:  # MMEngine's words for brackets
        raise ConfigError(
            f'--cfg-options {pair:.300}: brackets without their counterpart; put the argument into '
            'quotes, or correct it'
        ) from error
    return value


def _with_dicts(pair: str, value: str) -> Any:
    """Value of an argument in Python's notation; nothing is run."""
    try:
        return _value_of(ast.parse(value.strip(), mode='eval').body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f'--cfg-options {pair:.300}: a value with a dict is written as in Python, with '
            'the whole argument in quotes: \'custom_hooks=[dict(type="EMAHook", momentum=0.1)]\' '
            f'({error.msg if isinstance(error, SyntaxError) else error})'
        ) from error


def _value_of(node: ast.expr) -> Any:
    """Plain value of a parsed expression; ``dict(...)`` is a dict, a bare word is a text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value_of(item) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {ast.literal_eval(key): _value_of(item) for key, item in zip(node.keys, node.values)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if node.args or any(item.arg is None for item in node.keywords):
            raise ValueError('dict takes key=value only')
        return {item.arg: _value_of(item.value) for item in node.keywords}
    return ast.literal_eval(node)
