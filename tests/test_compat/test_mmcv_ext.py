"""The stand-in for mmcv._ext: imports work, calls explain themselves, a real module is kept."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from pixelsail_mm.compat import ensure_mmcv_ops
from pixelsail_mm.compat.mmcv_ext import MODULE_NAME

# Any use of a socket fails: importing must not reach for the network.
OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f'network access while importing: {args}')
socket.socket.connect = socket.getaddrinfo = refuse
"""


def run_python(code, repo_root):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', OFFLINE + code],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def fake_mmcv(tmp_path, monkeypatch):
    """An empty mmcv package in front of the installed one; returns its folder."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    for name in [name for name in sys.modules if name.split('.')[0] == 'mmcv']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Recorded so that a stand-in made by the test is removed afterwards.
    monkeypatch.setitem(sys.modules, MODULE_NAME, ModuleType(MODULE_NAME))
    del sys.modules[MODULE_NAME]
    return package


def test_without_compiled_ops_the_module_is_registered_once(fake_mmcv):
    assert ensure_mmcv_ops() is True
    stand_in = sys.modules[MODULE_NAME]
    assert importlib.import_module(MODULE_NAME) is stand_in
    assert ensure_mmcv_ops() is True
    assert sys.modules[MODULE_NAME] is stand_in


def test_called_op_names_itself_and_the_remedy(fake_mmcv):
    ensure_mmcv_ops()
    op = sys.modules[MODULE_NAME].ms_deform_attn_forward
    with pytest.raises(RuntimeError, match=r"'ms_deform_attn_forward'.*mmcv-lite.*mim install"):
        op(1, 2, value=3)


def test_stand_in_has_no_dunder_attributes_and_reports_no_loader(fake_mmcv):
    ensure_mmcv_ops()
    stand_in = sys.modules[MODULE_NAME]
    assert not hasattr(stand_in, '__path__')
    assert not hasattr(stand_in, '__file__')
    # mmcv.utils.check_ops_exist() asks for the loader.
    assert importlib.util.find_spec(MODULE_NAME).loader is None


def test_compiled_ops_are_left_alone(fake_mmcv):
    (fake_mmcv / '_ext.py').write_text('def nms():\n    return "compiled"\n')
    importlib.invalidate_caches()
    assert ensure_mmcv_ops() is False
    assert importlib.import_module(MODULE_NAME).nms() == 'compiled'
    assert ensure_mmcv_ops() is False


def test_absent_mmcv_is_not_faked(fake_mmcv, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert ensure_mmcv_ops() is False
    assert MODULE_NAME not in sys.modules


@pytest.mark.integration
def test_importing_the_package_is_light_and_offline(repo_root):
    done = run_python(
        'import pixelsail_mm\n'
        'heavy = {"torch", "mmcv", "mmdet", "mmengine", "transformers", "xtuner"}\n'
        'print(sorted(heavy & set(sys.modules)))',
        repo_root,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


@pytest.mark.integration
@pytest.mark.slow
def test_mmdet_models_and_point_sample_work(repo_root):
    done = run_python(
        'import pixelsail_mm, mmdet.models, torch\n'
        'from mmcv.ops import point_sample\n'
        'image = torch.tensor([[[[0., 1.], [2., 3.]]]])\n'
        'print(point_sample(image, torch.tensor([[[0.25, 0.75]]])).item())\n'
        'from mmcv.utils import collect_env\n'
        'print(collect_env()["MMCV Compiler"])\n',
        repo_root,
    )
    assert done.returncode == 0, done.stderr
    # Other libraries print their own lines in between.
    assert {'2.0', 'n/a (mmcv-lite)'} <= set(done.stdout.splitlines())
