"""XTuner's parts come through one module, without XTuner's own packages."""

import ast
import json
import subprocess
import sys

import pytest

from pixelsail_mm.compat import xtuner
from pixelsail_mm.errors import ConfigError


def test_no_other_module_imports_xtuner(repo_root):
    found = []
    for path in repo_root.rglob('*.py'):
        parts = path.relative_to(repo_root).parts
        if parts[0].startswith('.') or parts == ('pixelsail_mm', 'compat', 'xtuner.py'):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or '']
            if any(name.split('.')[0] == 'xtuner' for name in names):
                found.append('/'.join(parts))
    assert found == []


@pytest.mark.integration
def test_parts_are_read_without_the_packages_around_them(repo_root):
    code = (
        'from pixelsail_mm.compat.xtuner import LengthGroupedSampler, PROMPT_TEMPLATE, '
        'TrainLoop, deepspeed_preset\n'
        'import sys\n'
        'print(PROMPT_TEMPLATE["qwen_chat"]["SUFFIX"], TrainLoop.__mro__[1].__name__, '
        'LengthGroupedSampler.__name__, deepspeed_preset("zero2").is_file())\n'
        'print(sorted(name for name in sys.modules if name.split(".")[0] == "xtuner"))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, modules = done.stdout.splitlines()[-2:]
    assert said == '<|im_end|> IterBasedTrainLoop LengthGroupedSampler True'
    assert ast.literal_eval(modules) == [
        'xtuner.dataset.samplers.length_grouped',
        'xtuner.engine.runner.loops',
        'xtuner.utils.templates',
    ]


def test_presets_are_json():
    for name in ('zero1', 'zero2', 'zero3', 'zero2_offload', 'zero3_offload'):
        assert json.loads(xtuner.deepspeed_preset(name).read_text())['zero_optimization']


def test_absent_xtuner_is_said(monkeypatch):
    monkeypatch.setattr(xtuner, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='XTuner is not installed: pip install --no-deps'):
        xtuner.deepspeed_preset('zero1')


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match='LLaVADataset'):
        _ = xtuner.LLaVADataset
