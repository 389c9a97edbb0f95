"""Imports between the packages run down the floors of the house, and never in a circle."""

import ast
from graphlib import TopologicalSorter

import pytest

# From the ground up. Packages of one floor may import each other, without a circle of modules.
FLOORS = [
    {
        'version',
        'errors',
        'notices',
        'rendering',
        'registry',
        'type_names',
        'setting_differences',
        'structures',
        'compat',
    },
    {'tokenization', 'downloads'},
    {'datasets'},
    {'worlds', 'models', 'config'},
    {'checkpoints'},
    {'engine', 'visualization'},
    {'evaluation', 'apis', 'hf'},
    {'testing', 'command_line'},
    {'benchmarks', 'model_zoo'},
]
NUMBERS = {name: number for number, names in enumerate(FLOORS) for name in names}


@pytest.fixture(scope='module')
def imports(repo_root):
    """Module -> modules of the package that it imports, at its top or inside functions."""
    package = repo_root / 'pixelsail_mm'
    files = set(package.rglob('*.py')) - {package / '__init__.py'}
    names = {
        '.'.join(path.relative_to(package).with_suffix('').parts).removesuffix('.__init__'): path
        for path in files
    }
    found = {}
    for name, path in names.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{path}: write absolute imports'
                wanted |= {f'{node.module}.{alias.name}' for alias in node.names}
        inside = {
            full.removeprefix('pixelsail_mm.')
            for full in wanted
            if full.startswith('pixelsail_mm.')
        }
        found[name] = {
            target if target in names else target.rpartition('.')[0] for target in inside
        } & names.keys() - {name}
    return found


def test_every_package_has_a_floor(imports):
    assert {name.split('.')[0] for name in imports} == NUMBERS.keys()


def test_imports_run_down(imports):
    up = [
        f'{name} -> {target}'
        for name, targets in imports.items()
        for target in targets
        if NUMBERS[name.split('.')[0]] < NUMBERS[target.split('.')[0]]
    ]
    assert up == []


def test_no_circle(imports):
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
