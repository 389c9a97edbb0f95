"""Read, compute and write metafile.yml of a folder of configs, in MMDetection's format.

A person writes, for each model, ``Name``, ``In Collection``, ``Config``, ``Training Data`` in
``Metadata`` (and memory where it was measured), ``Weights`` (a path, or null and a ``Weights
Note``), and ``Evaluation``, which says where values come from. :func:`refresh` computes the rest:
sizes and schedule from the config, ``Results`` from the result files that ship and the published
table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from pixelsail_mm.errors import ConfigError

NOT_RUN, NOT_STATED, NOT_MEASURED = 'not run', 'not stated', 'not measured'
INDEX = 'model-index.yml'
_TYPED = ('Name', 'In Collection', 'Config')
_TO_MEASURE = {
    'Training Data': NOT_STATED,
    'Training Memory (GB)': NOT_MEASURED,
    'Inference Memory (GB)': NOT_MEASURED,
}
# Metrics that are given as they are; all others in percent.
_PLAIN_METRICS = ('accuracy', 'CIDEr', 'overall')
_HEAD = """\
# Models of this folder (OpenMMLab's format). Parameters, tokens, memory, schedule and Results are
# computed: python tools/analysis_tools/get_model_info.py CONFIG --update-metafile
# See docs/model_zoo.md.
"""


@cache
def paper_results() -> dict[str, Any]:
    """``benchmarks`` and ``published`` values of the paper, see ``paper_results.yml``."""
    text = (files('pixelsail_mm.model_zoo') / 'paper_results.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def read_metafile(path: Path) -> dict[str, Any]:
    """Collections and models of a metafile.

    Raises:
        ConfigError: It is no YAML, or lacks ``Collections`` or ``Models``.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: not valid YAML ({error})') from error
    if not isinstance(content, dict) or not {'Collections', 'Models'} <= content.keys():
        raise ConfigError(f'{path}: needs the keys Collections and Models')
    return content


def write_metafile(path: Path, content: Mapping[str, Any]) -> None:
    """Write a metafile with the head that says how it is made."""
    path.write_text(_HEAD + dump(content), encoding='utf-8')


def dump(content: Any) -> str:
    """YAML in the order given, with lines of at most 100 characters where that can be."""
    return yaml.safe_dump(content, sort_keys=False, width=98, allow_unicode=True)


def all_metafiles(root: Path) -> list[Path]:
    """The metafiles that ``model-index.yml`` of a source tree imports, in its order."""
    index = yaml.safe_load((root / INDEX).read_text(encoding='utf-8'))
    return [root / name for name in index['Import']]


def refresh(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Compute what can be computed in the entry of a model.

    Args:
        entry: The entry; keys that a person writes stay.
        root: Source tree; paths in the entry are relative to it.

    Returns:
        The entry anew, its keys in a fixed order.

    Raises:
        ConfigError: Config or result file is missing or lacks a value.
    """
    missing = [key for key in _TYPED if key not in entry]
    if missing:
        known = entry.get('Config') or entry.get('Name')
        raise ConfigError(f'the entry of {known} in its metafile lacks {", ".join(missing)}')
    metadata, evaluation = entry.get('Metadata', {}), entry.get('Evaluation', {})
    tokenizer = metadata.get('Tokenizer')
    facts = _facts(root / entry['Config'], str(root / tokenizer) if tokenizer else None)
    metadata = _TO_MEASURE | {key: value for key, value in metadata.items() if key not in facts}
    weights = {'Weights': entry.get('Weights')}
    if entry.get('Weights Note'):
        weights['Weights Note'] = entry['Weights Note']
    # Keys that a person added stay, in their order, between these two.
    first = {key: entry[key] for key in _TYPED} | {'Metadata': metadata | facts}
    last = {
        'Evaluation': evaluation,
        'Protocol Version': protocol_version(evaluation, root),
        'Results': results(evaluation, root),
        **weights,
    }
    own = {key: entry[key] for key in entry if key not in {*first, *last, 'Weights Note'}}
    return first | own | last


def _facts(config: Path, tokenizer: str | None) -> dict[str, Any]:
    from pixelsail_mm.benchmarks.model_info import DISTILLATION, NO_ZERO3, model_info
    from pixelsail_mm.config import read_config

    if not config.is_file():
        raise ConfigError(f'{config}: no such config')
    info = model_info(read_config(config), tokenizer)
    processes = 8
    height, width = info.image_size
    return {
        'Parameters': info.total,
        'Parameters by Part': {
            part: count for part, count in info.parts.items() if part != DISTILLATION
        },
        'Trained Parameters': info.trainable,
        'Tokens per Image': f'{info.image_tokens:,} at {width}x{height}',
        'Schedule': info.schedule,
        'Precision': info.precision,
        'Training State Memory (GiB)': {
            '1 process': round(info.training_state(), 3),
            f'ZeRO-2, {processes} processes': round(info.training_state(2, processes), 3),
            f'ZeRO-3, {processes} processes': NO_ZERO3
            if info.four_bit
            else round(info.training_state(3, processes), 3),
        },
    }


def results(evaluation: Mapping[str, Any], root: Path) -> list[dict[str, Any]]:
    """Results in OpenMMLab's format with the published value beside ours.

    Args:
        evaluation: ``Folder`` with one result file per benchmark and/or ``Published`` (row of the
            paper) and/or ``Data`` (what the benchmarks' data really is); or ``Values``: a list of
            ``Task``, ``Dataset``, ``Metric`` and ``Key`` in ``File``, or ``Value`` and ``Source``.
        root: Source tree.

    Returns:
        Entries ``Task``, ``Dataset``, ``Metrics`` (strict protocol, or 'not run'), ``Paper
        Protocol`` (the same predictions, scored as the authors do), ``Published``.
    """
    if 'Values' in evaluation:
        return [_single_result(value, evaluation, root) for value in evaluation['Values']]
    if not {'Folder', 'Published'} & evaluation.keys():
        return []
    rows = []
    published = paper_results()['published'].get(evaluation.get('Published'), {})
    for name, benchmark in paper_results()['benchmarks'].items():
        if 'Folder' not in evaluation and name not in published:
            continue
        path = root / evaluation['Folder'] / f'{name}.json' if 'Folder' in evaluation else None
        values = published.get(name, [None] * len(benchmark['values']))
        rows += [
            _benchmark_result(benchmark['task'], column, path, value, evaluation)
            for column, value in zip(benchmark['values'], values)
        ]
    return rows


def protocol_version(evaluation: Mapping[str, Any], root: Path) -> str:
    """Protocols and version of the question templates: of the run, or of a run that starts now.

    Arguments as for :func:`results`.
    """
    from pixelsail_mm.datasets.templates import templates_version
    from pixelsail_mm.evaluation.protocols import PAPER, STRICT

    if 'File' in evaluation:
        files = [root / evaluation['File']]
    else:
        files = (root / evaluation['Folder']).glob('*.json') if 'Folder' in evaluation else ()
    versions = {_result_file(path).get('question_templates', 'not recorded') for path in files}
    if not versions:
        versions = {'not recorded' if 'Values' in evaluation else templates_version()}
    # Values named one by one are those of the config's own evaluators.
    protocols = STRICT if 'Values' in evaluation else f'{STRICT} and {PAPER}'
    return f'{protocols}, question templates {", ".join(sorted(map(str, versions)))}'


def _benchmark_result(
    task: str,
    column: Mapping[str, str],
    path: Path | None,
    published: float | None,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    metric, key = column['metric'], column['key']
    prefix, _, name = key.partition('/')
    data = f' ({evaluation["Data"]})' if 'Data' in evaluation else ''
    row = {'Task': task, 'Dataset': column['dataset'] + data}
    if path is None:
        row['Metrics'] = {metric: NOT_RUN}
    else:
        row['Metrics'] = {metric: _value(metric, path, key)}
        paper = column.get('paper_key', f'{prefix}_paper/{name}')
        row['Paper Protocol'] = {metric: _value(metric, path, paper)}
    if published is not None:
        row['Published'] = {metric: published}
    return row


def _single_result(
    value: Mapping[str, Any], evaluation: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    metric = value['Metric']
    row = {'Task': value['Task'], 'Dataset': value['Dataset']}
    if 'Key' not in value:
        return {**row, 'Metrics': {metric: value['Value']}, 'Source': value['Source']}
    if 'File' not in evaluation:
        raise ConfigError(f'`Evaluation` of the metafile names {value["Key"]}, but no `File`')
    found = _value(metric, root / evaluation['File'], value['Key'])
    return {**row, 'Metrics': {metric: found}}


@cache
def _result_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f'{path}: no such result file; correct `Evaluation` in the metafile')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(f'{path}: not valid JSON ({error})') from error


def _value(metric: str, path: Path, key: str) -> float:
    """A metric of a result file, in the unit of the page."""
    metrics = _result_file(path).get('metrics', {})
    if key not in metrics:
        raise ConfigError(
            f'{path}: has no metric {key}; evaluate anew, or correct `Evaluation` in the metafile'
        )
    return round(metrics[key], 3) if metric in _PLAIN_METRICS else round(100 * metrics[key], 2)


def update(config: Path, root: Path, tokenizer: str | None = None) -> Path:
    """Update the entry of a config in its folder's metafile, or add one.

    Args:
        config: The config.
        root: Source tree that holds it.
        tokenizer: Tokenizer folder in the tree, kept in the entry: for configs whose own tokenizer
            comes with data that need not be here.

    Returns:
        The metafile. A new one is added to ``model-index.yml``.

    Raises:
        ConfigError: The config lies outside ``root``; see also :func:`refresh`.
    """
    config = config.resolve()
    if not config.is_relative_to(root):
        raise ConfigError(
            f'{config} lies outside {root}; --update-metafile is for configs of the source tree'
        )
    name = config.relative_to(root).as_posix()
    path = config.with_name('metafile.yml')
    content = (
        read_metafile(path)
        if path.is_file()
        else dict(Collections=[dict(Name=config.parent.name)], Models=[])
    )
    entries = {entry['Config']: entry for entry in content['Models']}
    entry = entries.get(name) or {
        'Name': config.stem,
        'In Collection': content['Collections'][0]['Name'],
        'Config': name,
        'Weights': None,
        'Weights Note': 'not trained',
    }
    if tokenizer:
        entry = {**entry, 'Metadata': {**entry.get('Metadata', {}), 'Tokenizer': tokenizer}}
    entries[name] = refresh(entry, root)
    content['Models'] = list(entries.values())
    write_metafile(path, content)
    _add_to_index(path.relative_to(root).as_posix(), root)
    return path


def _add_to_index(name: str, root: Path) -> None:
    path = root / INDEX
    index = yaml.safe_load(path.read_text(encoding='utf-8')) if path.is_file() else dict(Import=[])
    if name not in index['Import']:
        index['Import'] = sorted([*index['Import'], name])
        path.write_text(dump(index), encoding='utf-8')
