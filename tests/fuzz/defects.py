"""One random defect in something valid: in plain containers, or in the bytes of a file."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

DEEP = 20_000


def _deep(kind: str) -> str:
    """JSON text that nests far deeper than any recursion may go."""
    return '[' * DEEP + ']' * DEEP if kind == 'list' else '{"a":' * DEEP + '1' + '}' * DEEP


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        1.5,
        -0.5,
        14,
        15,
        255,
        256,
        65536,
        2**31 - 1,
        2**31,
        2**32,
        2**63,
        2**64,
        10**30,
    ),
    *(-(2**31), -(2**63), 1e-320, 1e20, -1e20, 1e308),
    *(float('nan'), float('inf'), float('-inf'), True, False),
)
TEXTS = (
    *(
        '',
        ' ',
        '\n',
        '\t',
        '0',
        '-1',
        '1e999',
        'nan',
        '12',
        'null',
        'x' * 100_000,
        'ä',
        '漢字',
        '\u2028',
    ),
    *(
        '\x00',
        'a\x00b',
        '\ud800',
        '\x1b[31m',
        '\ufeff',
        '../x.jpg',
        '../../../etc/passwd',
        '/etc/passwd',
    ),
    *('/dev/null', '.', '..', '/', 'a/' * 3000, 'x' * 300, '~', 'C:\\x', 'file:///etc/passwd'),
    *(
        '[SEG]',
        '[SEG] [SEG]',
        '<vision>',
        '<vpatch>',
        '</vision>',
        '<image>',
        '<Prompt0>',
        '<Prompt14>',
    ),
    *('<Prompt15>', '<Prompt99999999999999999999>', '<prompt 3>', '<|im_end|>', '<|endoftext|>'),
    *(
        '<p>',
        '</p>',
        '<p> a </p> [SEG]',
        '<region1>',
        '<region99>',
        '{x}',
        '{}',
        '{input}',
        '{0.__class__}',
    ),
    *(
        '%s',
        '\\',
        '"',
        "'",
        'A',
        'Z',
        'Aa',
        '(A) x (B) y',
        'A. x\nB. y',
        'object_1',
        'object_99999',
    ),
)
CONTAINERS: tuple[Any, ...] = (
    *([], {}, [[]], [None], [{}], {'': None}, {'a': 1}, {'size': [1, 1], 'counts': '1'}, ['x']),
    *(
        [0, 0, 0, 0],
        [-1],
        [1, 2],
        [1e999, 0],
        [[0, 0], [1, 1], [1, 0]],
        [[1, 2, 3, 4, 5, 6]],
        [[[1]]],
    ),
    *({'size': [80, 80], 'counts': [6400]}, {'size': [80, 80], 'counts': []}, [True], ['a', 1]),
    *({'size': [10**6, 10**6], 'counts': 'PPPP'}, {'size': [80, 80], 'counts': 'oooooo'}),
    *({'size': [80, 80], 'counts': '\x00'}, {'size': '80', 'counts': '1'}, {'png': '/dev/zero'}),
    *({'union': 3}, {'painted': [{}]}, {'counts': 'a'}, _nested(3), _nested(300)),
)


def _positions(value: Any, path: tuple = (), shape: tuple = ()) -> list[tuple[tuple, tuple]]:
    """Path of every value inside, with the path in which all list positions are the same."""
    found = [(path, shape)]
    if isinstance(value, dict):
        for key, part in value.items():
            found += _positions(part, (*path, key), (*shape, key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            found += _positions(part, (*path, i), (*shape, '*'))
    return found


def _at(value: Any, path: tuple) -> Any:
    for step in path:
        value = value[step]
    return value


def _any_value(rng: random.Random) -> Any:
    pool = rng.choice((NUMBERS, TEXTS, CONTAINERS, (None,)))
    return copy.deepcopy(rng.choice(pool))


def _changed(value: Any, rng: random.Random) -> Any:
    """Something that looks like a value but is not quite it."""
    if isinstance(value, bool) or value is None:
        return _any_value(rng)
    if isinstance(value, int):
        return rng.choice((-value, value + 1, value - 1, value * 10**9, value + 0.5, str(value)))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e9, int(value), str(value), [value]))
    if isinstance(value, (str, bytes)):
        cut = rng.randint(0, len(value))
        twice = value + value
        if isinstance(value, bytes):
            return rng.choice((value[:cut], value[cut:], twice, b''))
        extra = rng.choice(TEXTS)
        return rng.choice(
            (value[:cut], value[cut:], twice, value.upper(), value[:cut] + extra + value[cut:])
        )
    if isinstance(value, dict):
        return rng.choice((list(value.values()), list(value.items()), [value], str(value)))
    if not isinstance(value, (list, tuple)):
        return _any_value(rng)
    return rng.choice((dict(enumerate(value)), [value], value[:1], str(value), [*value, *value]))


def damage(value: Any, rng: random.Random) -> tuple[Any, tuple, str]:
    """Put one defect into plain containers.

    Args:
        value: dicts, lists, texts and numbers; not changed.
        rng: Source of randomness.

    Returns:
        The damaged copy, the path of the defect in it, and what it is in words.
    """
    value = copy.deepcopy(value)
    groups = defaultdict(list)
    for path, shape in _positions(value):
        groups[shape].append(path)
    # First a kind of place, then one of its places: points of polygons are most of all places.
    path = rng.choice(groups[rng.choice(list(groups))])
    part = _at(value, path)
    kinds: list[Callable[[], Any]] = [
        lambda: _any_value(rng),
        lambda: _changed(part, rng),
        lambda: copy.deepcopy(_at(value, rng.choice(groups[rng.choice(list(groups))]))),
    ]
    if isinstance(part, (dict, list)):
        kinds += [lambda: _without(part, rng), lambda: _with_more(part, rng)]
    new = rng.choice(kinds)()
    if not path:
        return new, path, f'content -> {new!r:.80}'
    parent = _at(value, path[:-1])
    if isinstance(parent, tuple):
        return damage(value, rng)
    parent[path[-1]] = new
    return value, path, f'{list(path)}: {part!r:.60} -> {new!r:.80}'


def _without(part: Any, rng: random.Random) -> Any:
    """Without one entry, or with another name for it."""
    if not part:
        return part
    if isinstance(part, list):
        i = rng.randrange(len(part))
        return part[:i] + part[i + 1 :]
    key = rng.choice(list(part))
    kept = {other: held for other, held in part.items() if other != key}
    return kept if rng.random() < 0.7 else {**kept, f'{key}_': part[key]}


def _with_more(part: Any, rng: random.Random) -> Any:
    """With one entry twice, or with one more."""
    if isinstance(part, dict):
        return {**part, rng.choice(TEXTS): _any_value(rng)}
    more = copy.deepcopy(rng.choice(part)) if part and rng.random() < 0.5 else _any_value(rng)
    i = rng.randint(0, len(part))
    return [*part[:i], more, *part[i:]]


def damage_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Put one defect into the bytes of a file.

    Args:
        content: The bytes.
        rng: Source of randomness.

    Returns:
        The damaged bytes and what the defect is, in words.
    """
    size = len(content)
    # Headers stand in front; the rest is mostly values.
    near = rng.choice((16, 64, 256, size))
    i = rng.randrange(max(1, min(near, size)))
    if rng.random() < 0.2:
        i = max(0, size - 1 - i)  # and directories of archives at the end
    length = rng.choice((1, 2, 4, 8, 64, size))
    kind = rng.choice(
        ('cut', 'flip', 'byte', 'number', 'drop', 'repeat', 'insert', 'zeros', 'empty')
    )
    before, after = content[:i], content[i:]
    if kind == 'cut':
        return before, f'cut to {i} of {size} bytes'
    if kind == 'flip':
        after = bytes([after[0] ^ (1 << rng.randrange(8))]) + after[1:] if after else b''
    elif kind == 'byte':
        after = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + after[1:]
    elif kind == 'number':
        number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1))
        width = rng.choice((2, 4, 8))
        order = rng.choice(('little', 'big'))
        after = (number % 2 ** (8 * width)).to_bytes(width, order) + after[width:]
    elif kind == 'drop':
        after = after[length:]
    elif kind == 'repeat':
        after = after[:length] + after
    elif kind == 'insert':
        after = rng.randbytes(min(length, 64)) + after
    elif kind == 'zeros':
        after = bytes(min(length, len(after))) + after[length:]
    else:
        return b'', 'no bytes'
    return before + after, f'{kind} of {length} at {i} of {size} bytes'


def damage_text(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Put one defect into the bytes of a file of UTF-8 text, as editors and downloads do.

    Args:
        content: The bytes.
        rng: Source of randomness.

    Returns:
        See :func:`damage_bytes`.
    """
    kind = rng.choice(
        (
            'bytes',
            'bytes',
            'utf-16',
            'utf-32',
            'latin-1',
            'bom',
            'deep',
            'html',
            'nul',
            'twice',
            'wide',
        )
    )
    if kind == 'bytes':
        return damage_bytes(content, rng)
    if kind in ('utf-16', 'utf-32'):
        return content.decode().encode(kind), f'written as {kind}'
    if kind == 'latin-1':
        i = rng.randrange(len(content))
        return content[:i] + 'é'.encode(kind) + content[i:], f'a byte of latin-1 at {i}'
    if kind == 'bom':
        return b'\xef\xbb\xbf' + content, 'a byte-order mark'
    if kind == 'html':
        return b'<!DOCTYPE html><html><body>404</body></html>', 'a page in the place of the file'
    if kind == 'nul':
        return bytes(len(content)), 'zeros only'
    if kind == 'twice':
        return content + content, 'twice behind each other'
    i = rng.choice([i for i, byte in enumerate(content) if byte in b'[{:,'] or [0]) + 1
    inserted = (
        _deep(rng.choice(('list', 'dict'))).encode()
        if kind == 'deep'
        else rng.choice(
            (b'1' * 5000, b'-', b'1e5', b'"' + b'y' * 1_000_000 + b'"', b'1.' + b'3' * 5000)
        )
    )
    return content[:i] + inserted + b',' * rng.randint(0, 1) + content[i:], f'{kind} text at {i}'
