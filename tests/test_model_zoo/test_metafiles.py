"""Metafiles agree with configs, shipped results, the published table; the page with them."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.model_zoo import metafile
from pixelsail_mm.model_zoo.metafile import (
    NOT_RUN,
    NOT_STATED,
    all_metafiles,
    paper_results,
    read_metafile,
    refresh,
    results,
)

ROOT = Path(__file__).parents[2]
MODELS = {
    model['Config']: model
    for path in all_metafiles(ROOT)
    for model in read_metafile(path)['Models']
}
# Folders whose configs train no model of their own.
NO_MODELS = {'_base_', 'benchmarks'}
UPDATE = 'run tools/analysis_tools/get_model_info.py CONFIG --update-metafile'


def test_every_config_has_an_entry_and_every_entry_a_config():
    configs = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob('configs/*/*.py')
        if path.parent.name not in NO_MODELS
    }
    assert configs == MODELS.keys(), UPDATE


@pytest.mark.parametrize('config', MODELS)
def test_what_is_computed_is_current(config, monkeypatch):
    """Parameters, tokens, memory, schedule; our and the published values."""
    monkeypatch.chdir(ROOT)
    for name in ('PIXELSAIL_DATA', 'PIXELSAIL_BASE'):
        monkeypatch.delenv(name, raising=False)
    assert refresh(MODELS[config], ROOT) == MODELS[config], UPDATE


@pytest.mark.parametrize('path', all_metafiles(ROOT), ids=lambda path: path.parent.name)
def test_format(path):
    """OpenMMLab's keys; what a person has to fill in is filled in; paths exist."""
    content = read_metafile(path)
    assert path.read_text() == metafile._HEAD + metafile.dump(content)
    collections = {collection['Name'] for collection in content['Collections']}
    for model in content['Models']:
        assert model['In Collection'] in collections
        assert model['Metadata']['Training Data'] != NOT_STATED
        if model['Weights'] is None:
            assert model['Weights Note']
        else:
            assert (ROOT / model['Weights']).is_file()
        assert all({'Task', 'Dataset', 'Metrics'} <= result.keys() for result in model['Results'])
        for value in model['Evaluation'].get('Values', ()):
            assert 'Key' in value or (ROOT / value['Source']).is_file()


def test_results_were_made_with_the_weights_that_ship():
    tested = 0
    for model in MODELS.values():
        where = model['Evaluation']
        if model['Weights'] is None:
            continue  # `Weights Note` says why; the results name the checkpoint by its sum
        files = (
            list((ROOT / where['Folder']).glob('*.json'))
            if 'Folder' in where
            else [ROOT / where['File']]
            if 'File' in where
            else []
        )
        for file in files:
            digest = hashlib.sha256((ROOT / model['Weights']).read_bytes()).hexdigest()
            assert metafile._result_file(file)['checkpoint']['sha256'] == digest
            tested += 1
    assert tested == 9


# The paper's tables, typed a second time: R, R+, Rg, gR, caption, PerBench.
PUBLISHED = {
    '0.5B': '77.9/80.5/75.9 70.8/75.8/65.4 75.4/76.7 63.9/71.5/63.6 16.0 21.4/0.69/29.7/19.8/38.4',
    '0.5B ft': '79.1/81.7/77.0 73.0/77.0/68.0 75.6/76.1 68.0/74.0/66.8',
    '3B': '80.8/82.6/79.0 75.7/79.7/72.0 78.7/80.4 67.7/74.6/67.1 17.6 24.2/0.74/33.4/23.5/42.2',
    '3B ft': '81.8/83.4/78.8 76.2/79.7/71.2 78.5/79.4 72.1/77.1/70.4',
}


@pytest.mark.parametrize('row', PUBLISHED)
def test_published_values(row):
    typed = [
        '/'.join('' if value is None else str(value) for value in values)
        for values in paper_results()['published'][row].values()
    ]
    assert ' '.join(typed) == PUBLISHED[row]


def test_published_overall_scores_are_means_of_their_parts():
    for row in ('0.5B', '3B', 'Sa2VA-4B'):
        meteor, accuracy, c_iou, g_iou, overall = paper_results()['published'][row]['perbench']
        mean = (meteor + 100 * accuracy + (c_iou + g_iou) / 2) / 3
        assert overall == pytest.approx(mean, abs=0.25), 'accuracy is rounded to a whole percent'


def test_columns_and_values_are_equally_many():
    for row in paper_results()['published'].values():
        for name, values in row.items():
            assert len(values) == len(paper_results()['benchmarks'][name]['values'])


def test_not_run_stands_beside_published_values():
    found = MODELS['configs/pixelsail/pixelsail_3b.py']['Results']
    assert found[0] == {
        'Task': 'Referring Expression Segmentation',
        'Dataset': 'RefCOCO val',
        'Metrics': {'cIoU': NOT_RUN},
        'Published': {'cIoU': 80.8},
    }


def test_values_of_a_result_file(tmp_path):
    (tmp_path / 'r.json').write_text('{"metrics": {"a/cIoU": 0.71486, "a/accuracy": 0.4854}}')
    value = {'Task': 't', 'Dataset': 'd'}
    rows = results(
        {
            'File': 'r.json',
            'Values': [
                {**value, 'Metric': 'cIoU', 'Key': 'a/cIoU'},
                {**value, 'Metric': 'accuracy', 'Key': 'a/accuracy'},
            ],
        },
        tmp_path,
    )
    assert [row['Metrics'] for row in rows] == [{'cIoU': 71.49}, {'accuracy': 0.485}]
    rest = {**value, 'Metric': 'cIoU', 'Key': 'x'}
    (tmp_path / 'cut.json').write_text('{"metrics": {')
    for where, message in (
        ({'File': 'gone.json'}, 'gone.json: no such result file'),
        ({'File': 'cut.json'}, 'cut.json: not valid JSON'),
        ({'File': 'r.json'}, 'r.json: has no metric x'),
        ({}, 'names x, but no `File`'),
    ):
        with pytest.raises(ConfigError, match=message):
            results({**where, 'Values': [rest]}, tmp_path)


def test_an_entry_without_a_name_is_refused():
    with pytest.raises(ConfigError, match='entry of a.py in its metafile lacks Name, In Coll'):
        refresh({'Config': 'a.py'}, ROOT)


def test_a_new_config_gets_an_entry(tmp_path, monkeypatch):
    """In a copy of the tree; what a person wrote there survives an update."""
    config = tmp_path / 'configs/new/mine.py'
    config.parent.mkdir(parents=True)
    (tmp_path / 'tokenizer').symlink_to(ROOT / 'demo/checkpoints/pixelsail_tiny')
    source = (ROOT / 'configs/pixelsail/pixelsail_tiny_custom.py').read_text()
    config.write_text(source.replace("'../_base_", f"'{ROOT}/configs/_base_"))
    path = metafile.update(config, tmp_path, 'tokenizer')
    assert yaml.safe_load((tmp_path / 'model-index.yml').read_text()) == dict(
        Import=['configs/new/metafile.yml']
    )
    content = read_metafile(path)
    content['Models'][0]['Metadata']['Training Data'] = 'photos'
    metafile.write_metafile(path, content)
    metafile.update(config, tmp_path)
    (entry,) = read_metafile(path)['Models']
    assert entry['Metadata']['Training Data'] == 'photos'
    assert entry['Metadata']['Tokenizer'] == 'tokenizer'
    assert entry['Metadata']['Parameters'] == 1_508_480 and entry['Results'] == []
    with pytest.raises(ConfigError, match='lies outside'):
        metafile.update(ROOT / 'configs/pixelsail/pixelsail_tiny.py', tmp_path)


def test_a_broken_metafile_is_named(tmp_path):
    for text, message in (('a: [', 'not valid YAML'), ('Models: []', 'needs the keys')):
        (tmp_path / 'metafile.yml').write_text(text)
        with pytest.raises(ConfigError, match=f'metafile.yml: {message}'):
            read_metafile(tmp_path / 'metafile.yml')


@pytest.mark.integration
def test_the_page_is_current():
    done = subprocess.run(
        [sys.executable, 'tools/misc/zoo_docs.py', '--check'],
        cwd=ROOT,
        env={'PYTHONPATH': str(ROOT), 'PATH': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
