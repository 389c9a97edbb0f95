"""Optional packages are imported when something of them is needed, and not before."""

import ast
import subprocess
import sys

import pytest


def run_python(code, repo_root):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.parametrize(
    'module, packages',
    [
        (
            'pixelsail_mm.models',
            [
                'bitsandbytes',
                'deepspeed',
                'peft',
                'accelerate',
                'xtuner',
                'scipy',
                'torch._dynamo',
                'transformers.modeling_utils',
            ],
        ),
        ('pixelsail_mm.apis', ['bitsandbytes', 'deepspeed', 'xtuner', 'torch._inductor']),
    ],
)
def test_importing_stays_without(repo_root, module, packages):
    code = f'import {module}, sys\nprint([name for name in {packages} if name in sys.modules])'
    assert run_python(code, repo_root) == []


@pytest.mark.integration
def test_optimizers_and_strategy_come_when_asked_for(repo_root):
    code = """
import sys
from pixelsail_mm.registry import OPTIMIZERS, STRATEGIES
strategy = STRATEGIES.get('PixelDeepSpeedStrategy')
plain = OPTIMIZERS.get('AdamW').__module__
before = 'bitsandbytes' in sys.modules, 'deepspeed' in sys.modules
names = [OPTIMIZERS.get(name).__module__.split('.')[0]
         for name in ('PagedAdamW8bit', 'bnb_AdamW', 'Adafactor', 'mmengine.PagedLion8bit')]
from mmengine._strategy import deepspeed
deepspeed.deepspeed.__version__
unknown = OPTIMIZERS.get('NoOptimizer')
print([before, plain.split('.')[0], names, unknown, 'deepspeed' in sys.modules])
"""
    assert run_python(code, repo_root) == [
        (False, False),
        'torch',
        ['bitsandbytes', 'bitsandbytes', 'transformers', 'bitsandbytes'],
        None,
        True,
    ]
