"""Every benchmark's config, with every model's config, and through the real command."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pixelsail_mm.config import read_config
from pixelsail_mm.registry import DATASETS, METRICS

ROOT = Path(__file__).parents[2]
BENCHMARKS = {path.stem: path for path in sorted((ROOT / 'configs/benchmarks').glob('*.py'))}
MODELS = ('pixelsail_0.5b', 'pixelsail_3b', 'pixelsail_tiny')
# What a result must hold, strict and as in the authors' release.
VALUES = {
    'refcoco': ['refcoco_val/cIoU', 'refcoco_testA/gIoU', 'refcoco_testB_paper/Pr@0.9'],
    'refcoco_plus': ['refcoco_plus_val/cIoU', 'refcoco_plus_testB_paper/cIoU'],
    'refcocog': ['refcocog_val/cIoU', 'refcocog_test/Pr@0.5', 'refcocog_test_paper/gIoU'],
    'grefcoco': ['grefcoco_val/N-acc', 'grefcoco_testA/T-acc', 'grefcoco_testB_paper/gIoU'],
    'reason_seg': ['reason_seg_val/gIoU', 'reason_seg_test/cIoU', 'reason_seg_test_paper/cIoU'],
    'gcg': ['gcg_val/AP50', 'gcg_test/recall_token_f1', 'gcg_test_paper/mIoU'],
    'region_caption': ['refcocog_region_paper/protocol'],
    'perbench': [
        'perbench/accuracy',
        'perbench/cIoU',
        'perbench/retried',
        'perbench/cIoU_no_retry',
        'perbench/paper/gIoU',
    ],
}


def as_list(value):
    return value if isinstance(value, (list, tuple)) else [value]


def test_every_benchmark_is_here():
    assert set(BENCHMARKS) == set(VALUES)


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('name', BENCHMARKS)
def test_takes_model_and_pipeline_of_the_model(name, model):
    file = ROOT / f'configs/pixelsail/{model}.py'
    cfg = read_config(BENCHMARKS[name], model=file)
    plain = read_config(file)
    assert cfg.model == plain.model and cfg.test_cfg == plain.test_cfg
    assert Path(cfg.filename).stem == name and cfg.model_config == str(file)
    loaders, evaluators = cfg.test_dataloader, cfg.test_evaluator
    assert len(loaders) == len(evaluators)
    for loader in loaders:
        assert loader.dataset.pipeline == plain.test_pipeline
        for reader in loader.dataset.get('datasets', [loader.dataset]):
            assert Path(reader.data_root).is_relative_to(plain.data_root)
        assert loader.batch_size > 1
        assert loader.batch_sampler.type == 'EvaluationBatchSampler'
    prefixes = [metric.get('prefix') for part in evaluators for metric in as_list(part)]
    assert len(set(prefixes)) == len(prefixes)


@pytest.mark.parametrize('name', sorted(set(BENCHMARKS) - {'perbench'}))
def test_metrics_and_readers_know_their_settings(name, public_layout, monkeypatch):
    monkeypatch.setenv('PIXELSAIL_DATA', str(public_layout[1]))
    cfg = read_config(BENCHMARKS[name])
    for loader, metrics in zip(cfg.test_dataloader, cfg.test_evaluator):
        dataset = DATASETS.build(dict(loader.dataset, pipeline=[]))
        assert len(dataset) > 0 and dataset.test_mode
        for metric in as_list(metrics):
            settings = metric.to_dict() if hasattr(metric, 'to_dict') else dict(metric)
            if settings['type'] in ('CaptionMetric', 'GCGMetric'):
                settings['on_missing'] = 'skip'
            built = METRICS.build(settings)
            assert built.settings['protocol'] == settings.get('protocol', 'strict')


# What needs the optional packages, of those benchmarks that have captions.
WITH_CAPTION_PACKAGES = {
    'region_caption': ['refcocog_region/METEOR', 'refcocog_region_paper/CIDEr'],
    'gcg': ['gcg_val/METEOR', 'gcg_test_paper/CIDEr'],
    'perbench': ['perbench/METEOR', 'perbench/overall'],
}
HAS_CAPTION_PACKAGES = bool(find_spec('pycocoevalcap') and shutil.which('java'))


def leave_captions_out(name):
    """Options that leave out what the optional packages compute."""
    cfg = read_config(BENCHMARKS[name])
    return [
        f'test_evaluator.{i}{j}.on_missing=skip'
        for i, part in enumerate(cfg.test_evaluator)
        for j, metric in (
            [(f'.{j}', metric) for j, metric in enumerate(part)]
            if isinstance(part, (list, tuple))
            else [('', part)]
        )
        if metric['type'] in ('CaptionMetric', 'GCGMetric', 'PerBenchMetric')
    ]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize('name', BENCHMARKS)
def test_runs_through_the_command(name, run_command, warm_python, public_layout, tmp_path):
    options = [
        'model.generation.max_new_tokens=24',
        *([] if HAS_CAPTION_PACKAGES else leave_captions_out(name)),
    ]
    done = run_command(
        warm_python,
        'tools/test.py',
        f'configs/benchmarks/{name}.py',
        'demo/checkpoints/pixelsail_tiny_grounding/model.safetensors',
        '--model',
        'configs/pixelsail/pixelsail_tiny.py',
        '--work-dir',
        str(tmp_path),
        '--out',
        str(tmp_path / 'result.json'),
        '--cfg-options',
        *options,
        PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]),
        PIXELSAIL_DATA=str(public_layout[1]),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / 'result.json').read_text())
    wanted = VALUES[name] + HAS_CAPTION_PACKAGES * WITH_CAPTION_PACKAGES.get(name, [])
    assert set(wanted) <= set(result['metrics'])
    assert all(
        0 <= value <= 100 for value in result['metrics'].values() if isinstance(value, (int, float))
    )
    assert result['question_templates'] >= 1
    protocols = {
        settings.get('protocol') or tuple(settings['protocols'])
        for part in result['datasets']
        for settings in part['metric_settings']
    }
    assert protocols in ({'strict', 'paper'}, {('strict', 'paper')})


@pytest.mark.integration
def test_an_unknown_model_is_one_message(run_command, warm_python):
    done = run_command(
        warm_python,
        'tools/test.py',
        'configs/benchmarks/refcoco.py',
        'weights.safetensors',
        '--model',
        'configs/pixelsail/pixelsail_05b.py',
    )
    assert done.returncode == 2
    assert 'pixelsail_05b.py: no such file' in done.stderr and 'Traceback' not in done.stderr
