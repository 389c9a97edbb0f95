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


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def _overview(datasets: dict[str, Any]) -> str:
    rows = [
        _row('key', 'data set', 'task', 'reader', 'in the mix of the 0.5B recipe'),
        _row(*['---'] * 5),
    ]
    for name, entry in datasets.items():
        times = f'{entry["repeats"]}x' if 'repeats' in entry else ''
        rows.append(
            _row(
                f'[`{name}`](#{name})',
                entry['title'],
                entry['task'],
                f'`{entry["reader"]["type"]}`',
                times,
            )
        )
    return '\n'.join(rows) + '\n'


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
    rows = [
        '## Archives',
        '',
        _row('key', 'address', 'size', 'md5', 'unpack to'),
        _row(*['---'] * 5),
    ]
    for name, archive in archives.items():
        note = f'; {archive["note"]}' if 'note' in archive else ''
        rows.append(
            _row(
                f'`{name}`',
                f'<{archive["url"]}>',
                archive_bytes(name),
                f'`{archive["md5"]}`' if 'md5' in archive else '',
                f'`{archive["unpack_to"]}`{note}',
            )
        )
    return '\n'.join(rows) + '\n'
