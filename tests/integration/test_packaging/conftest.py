"""A small source tree with the real scripts, a fake package and a lock of hand-made wheels."""

import os
import shutil
import subprocess
import textwrap
import zipfile
from pathlib import Path

import pytest

BACKEND = '''
"""In-tree build backend: an editable wheel with nothing but metadata, made without a network."""
import zipfile


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = 'pixelsail_mm-0.0.1-py3-none-any.whl'
    with zipfile.ZipFile(f'{wheel_directory}/{name}', 'w') as wheel:
        info = 'pixelsail_mm-0.0.1.dist-info'
        wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: pixelsail_mm\\nVersion: 0.0.1\\n')
        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        wheel.writestr(f'{info}/RECORD', '')
    return name
'''  # noqa: E501
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module ``NAME.py`` that holds ``VERSION``."""
    info = f'{name}-{version}.dist-info'
    path = folder / f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as wheel:
        wheel.writestr(f'{name}.py', f'VERSION = {version!r}\n')
        wheel.writestr(
            f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
        wheel.writestr(
            f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        )
        wheel.writestr(f'{info}/RECORD', '')
    return path


class SourceTree:
    """Copy of the scripts in ``root``; runs them with a clean set of variables."""

    def __init__(self, root: Path, repo_root: Path) -> None:
        self.root = root
        self.venv = root / '.venv'
        self.lock = root / 'requirements' / 'lock.txt'
        for folder in ('requirements', 'tools', '.ci', 'tests'):
            (root / folder).mkdir(parents=True)
        for script in ('tools/_venv.sh', 'tools/run_tests.sh', 'tools/quickstart.sh', '.ci/run'):
            shutil.copy(repo_root / script, root / script)
        (root / 'pyproject.toml').write_text(PYPROJECT)
        (root / 'backend.py').write_text(BACKEND)
        (root / 'setup.py').touch()
        self.pin('tinydep', '1.0')

    def pin(self, name: str, version: str) -> None:
        """Make the lock name one local wheel."""
        wheel = write_wheel(self.root, name, version)
        self.lock.write_text(f'# a comment\n{name} @ {wheel.as_uri()}\n')

    def write(self, path: str, text: str) -> None:
        """Write a file of the tree, making its folder."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(textwrap.dedent(text))

    def environment(self, **variables) -> dict:
        """This process's variables without those the scripts read, and without a registry."""
        clean = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(('PIXELSAIL_', 'PIP_')) and k not in ('PYTHONPATH', 'PYTHON')
        }
        return {**clean, 'PIP_NO_INDEX': '1', 'PIP_CONFIG_FILE': os.devnull, **variables}

    def run(self, *command, cwd=None, **variables) -> subprocess.CompletedProcess:
        """Run a command from ``cwd`` (default: the top of the tree)."""
        return subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def ensure_venv_command(self) -> tuple:
        """Command that sources ``_venv.sh``, ensures the environment and names its Python."""
        script = 'set -euo pipefail; source "$0"; ensure_venv; echo "python=$VENV_PYTHON"'
        return 'bash', '-c', script, str(self.root / 'tools' / '_venv.sh')


@pytest.fixture
def source_tree(tmp_path, repo_root) -> SourceTree:
    """A fresh :class:`SourceTree` whose path has a space in it."""
    return SourceTree(tmp_path / 'source tree', repo_root)
