"""Paths, projects and modules of a config file."""

import subprocess
import sys
import zipfile

import pytest

from pixelsail_mm.config import read_config
from pixelsail_mm.errors import ConfigError

CONFIG = """
model = dict(type='A', distill=[1])
train_dataloader = dict(batch_size=1)
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text(CONFIG)
    return str(path)


def test_options_override(config_file):
    cfg = read_config(config_file, ['model.distill=[]', 'work_dir=w'])
    assert cfg.model.distill == [] and cfg.work_dir == 'w'


def test_misspelt_option_is_caught(config_file):
    with pytest.raises(ConfigError, match="no key 'modle'; did you mean model"):
        read_config(config_file, ['modle.distill=[]'])


def test_missing_config():
    with pytest.raises(ConfigError, match=r'absent\.py: no such file'):
        read_config('absent.py')


def test_module_that_cannot_be_imported(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text("custom_imports = dict(imports=['no_such_module'])\n")
    with pytest.raises(ConfigError, match=r'c\.py: custom_imports: .*no_such_module.*install'):
        read_config(path)


def test_a_config_that_ships_goes_by_its_name(repo_root):
    named = read_config('pixelsail_mm::pixelsail/pixelsail_mini.py')
    assert named.model == read_config(repo_root / 'configs/pixelsail/pixelsail_mini.py').model
    with pytest.raises(ConfigError, match=r'pixelsail_mm::absent/x\.py: no such file'):
        read_config('pixelsail_mm::absent/x.py')


@pytest.fixture
def project(tmp_path):
    """A plug-in in a folder of its own: a config that inherits ours, and a package."""
    (tmp_path / 'plug/configs/deeper').mkdir(parents=True)
    (tmp_path / 'plug/plugged_neck').mkdir()
    (tmp_path / 'plug/plugged_neck/__init__.py').write_text(
        'from pixelsail_mm.models.necks import BilinearUpsampler\n'
        'from pixelsail_mm.registry import MODELS\n\n\n'
        '@MODELS.register_module()\nclass PluggedNeck(BilinearUpsampler):\n    pass\n'
    )
    config = tmp_path / 'plug/configs/deeper/plugged.py'
    config.write_text(
        "_base_ = 'pixelsail_mm::pixelsail/pixelsail_mini.py'\n"
        "custom_imports = dict(imports=['plugged_neck'])\n"
        "model = dict(neck=dict(type='PluggedNeck'))\n"
    )
    return config


def test_a_project_needs_no_pythonpath(project, monkeypatch, lines):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    cfg = read_config(project)
    assert cfg.model.neck.to_dict() == dict(type='PluggedNeck', out_stride=2)
    assert cfg.model.backbone.llm.num_hidden_layers == 4
    read_config(project)
    sys.modules.pop('plugged_neck')
    [line] = lines
    assert line.endswith('its packages (plugged_neck) can be imported')


def test_configs_beside_installed_packages_change_no_path(repo_root):
    before = list(sys.path)
    read_config(repo_root / 'configs/pixelsail/pixelsail_mini.py')
    assert sys.path == before


@pytest.mark.integration
@pytest.mark.slow
def test_a_wheel_has_the_configs(repo_root, project, tmp_path):
    """Build the wheel, unpack it elsewhere, inherit from it: with our reading and MMEngine's."""
    (tmp_path / 'egg').mkdir()
    command = [
        sys.executable,
        'setup.py',
        '-q',
        'egg_info',
        '-e',
        tmp_path / 'egg',
        'build',
        '-b',
        tmp_path / 'build',
        'bdist_wheel',
        '-d',
        tmp_path / 'dist',
        '-b',
        tmp_path / 'bdist',
    ]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / 'dist').glob('*.whl')
    # Installed for good it would hide this source tree from other tests; unpacked it is the same.
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    script = f"""
import sys, pixelsail_mm
from pixelsail_mm.config import read_config
assert pixelsail_mm.__file__.startswith({str(tmp_path / 'site')!r}), pixelsail_mm.__file__
ours = read_config({str(project)!r})
from mmengine.config import Config
theirs = Config.fromfile({str(project)!r})
assert ours.model.neck.type == theirs.model.neck.type == 'PluggedNeck'
assert ours.model.backbone.llm == theirs.model.backbone.llm
print(ours.model.neck, read_config('pixelsail_mm::benchmarks/refcoco.py').model_config)
"""
    done = subprocess.run(
        [sys.executable, '-c', script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(PATH='', PYTHONPATH=str(tmp_path / 'site')),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / 'site/pixelsail_mm/.mim/configs/pixelsail/pixelsail_0.5b.py') in (
        done.stdout
    )
