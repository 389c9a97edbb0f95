"""A stand-in for Java and pycocoevalcap, so that what surrounds them is always tested."""

import os
import sys
from pathlib import Path

import pytest

# Both programs note when they start and end. METEOR's counts are "words in common, words"; its
# score is the first by the second, of all samples together. FAKE_JAVA names a way to fail.
FAKE_JAVA = """#!{python}
import os, re, sys, time
note = open(os.environ['FAKE_LOG'], 'a', buffering=1)
fault = os.environ.get('FAKE_JAVA', '')
if '-cp' in sys.argv:
    note.write('tokeniser starts\\n')
    lines = sys.stdin.buffer.read().decode('utf-8').split('\\n')[:-1]
    for line in lines[1 if fault == 'lines' else 0:]:
        words = re.sub(r'([.,:])', r' \\\\1 ', line.lower()).split()
        sys.stdout.buffer.write((' '.join(words) + '\\n').encode('utf-8'))
    note.write('tokeniser ends\\n')
    sys.exit()
note.write('meteor starts\\n')
for line in iter(sys.stdin.readline, ''):
    kind, *parts = line.rstrip('\\n').split(' ||| ')
    if fault == 'die':
        sys.stderr.write('no space for heap')
        sys.exit(3)
    if fault == 'refuse':
        print('Error: what is this', flush=True)
    elif kind == 'SCORE':
        said = set(parts[-1].split())
        common = max(len(said & set(part.split())) for part in parts[:-1])
        print(common, len(said), flush=True)
    else:
        counts = [[int(n) for n in part.split()] for part in parts]
        for one in [*counts, [sum(n) for n in zip(*counts)]]:
            print(one[0] / max(one[1], 1), flush=True)
if fault == 'hang':
    note.write('meteor hangs\\n')
    time.sleep(600)
note.write('meteor ends\\n')
"""
PUNCTUATION = "PUNCTUATIONS = ['.', ',', ':']\n"


def forget_package():
    for name in [name for name in sys.modules if name.split('.')[0] == 'pycocoevalcap']:
        del sys.modules[name]


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Put the stand-ins in place; gives a function that reads the programs' notes."""
    package = tmp_path / 'packages/pycocoevalcap'
    for path, text in {
        '__init__.py': '',
        'tokenizer/__init__.py': '',
        'meteor/__init__.py': '',
        'tokenizer/ptbtokenizer.py': PUNCTUATION,
        'meteor/meteor-1.5.jar': '',
        'tokenizer/stanford-corenlp-3.4.1.jar': '',
    }.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    java = tmp_path / 'bin/java'
    java.parent.mkdir()
    java.write_text(FAKE_JAVA.format(python=sys.executable).replace('\\\\1', '\\1'))
    java.chmod(0o755)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv('PATH', f'{java.parent}{os.pathsep}{os.environ["PATH"]}')
    log = tmp_path / 'notes.txt'
    monkeypatch.setenv('FAKE_LOG', str(log))
    forget_package()
    yield lambda: log.read_text().splitlines() if Path(log).exists() else []
    forget_package()


@pytest.fixture
def no_java(tmp_path, monkeypatch):
    """A machine without Java and without the package."""
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(
        'pixelsail_mm.evaluation.metrics.caption_toolkit._PACKAGE', 'no_such_package'
    )


@pytest.fixture
def warnings_of(monkeypatch):
    """Collect what modules log as warnings."""
    said = []

    def collect(*modules):
        for module in modules:
            monkeypatch.setattr(module, 'print_log', lambda text, **kwargs: said.append(text))
        return said

    return collect


@pytest.fixture(scope='session')
def toolkit_package():
    """Skip without the real pycocoevalcap."""
    forget_package()
    pytest.importorskip(
        'pycocoevalcap.cider.cider',
        reason='pycocoevalcap is not installed (pip install -e ".[caption]")',
    )


@pytest.fixture(scope='session')
def real_java(toolkit_package):
    """Skip without the real pycocoevalcap and Java."""
    from pixelsail_mm.evaluation.metrics.caption_toolkit import missing_requirements

    missing = missing_requirements()
    if missing:
        pytest.skip(f'caption metrics need {" and ".join(missing)}')
