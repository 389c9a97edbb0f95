"""docs/datasets.md, made from the manifest."""

from __future__ import annotations

from typing import Any

from pixelsail_mm.datasets.manifest.entries import archive_bytes, load_manifest, paths_of

_HEAD = """\
# Data sets

Made from `datasets/manifest/manifest.yml` by `python tools/misc/data_docs.py`; edit that file.

Folders are relative to the one in which training is started; a link does as well as a copy. After
fetching anything, `python tools/misc/check_data.py CONFIG` says what is missing, misnamed or
unreadable, and where it comes from. `python tools/misc/build_index.py CONFIG --workers 8` parses
all annotations once, before a training on many GPUs would do so in every process. Your own data:
[custom_data.md](custom_data.md).

Photos of COCO are found under the names of all its releases: `COCO_train2014_X.jpg` is also `X.jpg`
of train2017. Of the image folders of MUSE and Osprey not all must exist; a missing one is an error
only if an image is in none of the others.
"""


def render_page() -> str:
    """Give the page: overview, a section per data set, archives."""
    manifest = load_manifest()
    parts = [_HEAD, _overview(manifest['datasets'])]
    parts += [_section(name, entry) for name, entry in manifest['datasets'].items()]
    parts.append(_archives(manifest['archives']))
    return '\n'.join(parts)


def _table(*rows: tuple[str, ...]) -> str:
    """Table of rows of cells, the first of which is its head."""
    lines = [f'| {" | ".join(row)} |' for row in (rows[0], ['---'] * len(rows[0]), *rows[1:])]
    return '\n'.join(lines) + '\n'


def _overview(datasets: dict[str, Any]) -> str:
    head = 'key', 'data set', 'task', 'reader', 'in the mix of the 0.5B recipe'
    rows = []
    for name, entry in datasets.items():
        times = f'{entry["repeats"]}x' if 'repeats' in entry else ''
        reader = f'`{entry["reader"]["type"]}`'
        rows.append((f'[`{name}`](#{name})', entry['title'], entry['task'], reader, times))
    return _table(head, *rows)


def _section(name: str, entry: dict[str, Any]) -> str:
    lines = [f'## {name}', '', f'**{entry["title"]}** - {entry["task"]}. From <{entry["source"]}>.']
    if 'archives' in entry:
        lines.append('Archives: ' + ', '.join(f'`{key}`' for key in entry['archives']) + '.')
    if 'note' in entry:
        lines.append(f'Note: {entry["note"]}.')
    for use, splits in entry.get('splits', {}).items():
        names = splits if isinstance(splits, list) else [splits]
        lines.append(f'{use.capitalize()}: {", ".join(names)}.')
    lines += ['', '```text', *_layout(entry['reader'])]
    if 'evaluation_reader' in entry:
        lines += [line for line in _layout(entry['evaluation_reader']) if line not in lines]
    lines += ['```', '']
    lines += [f'sha256 of `{file}`: `{digest}`' for file, digest in entry.get('sha256', {}).items()]
    return '\n'.join(lines)


def _layout(reader: dict[str, Any]) -> list[str]:
    """Paths of a reader with what they are."""
    paths = paths_of(reader)
    width = max(map(len, paths.values())) + 3
    return [f'{path:{width}}{key}' for key, path in paths.items()]


def _archives(archives: dict[str, Any]) -> str:
    rows = [('key', 'address', 'size', 'md5', 'unpack to')]
    for name, archive in archives.items():
        md5 = f'`{archive["md5"]}`' if 'md5' in archive else ''
        note = f'; {archive["note"]}' if 'note' in archive else ''
        folder = f'`{archive["unpack_to"]}`{note}'
        rows.append((f'`{name}`', f'<{archive["url"]}>', archive_bytes(name), md5, folder))
    return '## Archives\n\n' + _table(*rows)
