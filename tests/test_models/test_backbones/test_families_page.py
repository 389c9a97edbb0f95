"""The table of families in docs/bases.md is what the check of families says."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[3]
_SPEC = spec_from_file_location('families_page', ROOT / 'tools' / 'misc' / 'families_page.py')
families_page = module_from_spec(_SPEC)
_SPEC.loader.exec_module(families_page)
known_families, verdict = families_page.known_families, families_page.verdict
read_table, read_verdicts = families_page.read_table, families_page.read_verdicts
update_page = families_page.update_page
PAGE = (ROOT / 'docs' / 'bases.md').read_text()
# Of each row of the table one or two.
SAMPLE = [
    'qwen2',
    'gemma2',
    'llama:yarn',
    'phi3:longrope',
    'granitemoe',
    'bamba',
    'lfm2',
    'minimax',
    'gpt2',
    'gptj',
    'olmo3',
    'gpt_neox',
    'falcon',
    'stablelm',
    'gemma3',
    'gpt_oss',
    'doge',
    'musicgen',
]


@pytest.fixture
def same_version():
    version = read_table(PAGE)[0]
    if version != transformers.__version__:
        pytest.skip(
            f'docs/bases.md is for transformers {version}, here is '
            f'{transformers.__version__}: run tools/misc/families_page.py to compare'
        )


@pytest.mark.parametrize('family', SAMPLE)
def test_page_says_what_the_check_says(same_version, family):
    assert read_verdicts(PAGE)[family] == verdict(family)


@pytest.mark.slow
def test_page_is_current(same_version):
    assert update_page(PAGE, known_families()) == PAGE


def test_page_has_every_family(same_version):
    assert read_verdicts(PAGE).keys() == set(known_families())


def test_update_keeps_the_rest_of_the_page(monkeypatch):
    said = dict(a='works', b='it has 1.5 eyes', c='works')
    monkeypatch.setattr(families_page, 'verdict', said.get)
    page = update_page('before\n' + '\n'.join(PAGE[PAGE.index('<!-- fam') :].splitlines()), said)
    assert page.startswith('before\n<!-- families') and '<!-- end of families -->' in page
    assert read_verdicts(page) == said
    assert read_table(page)[0] == transformers.__version__
    rows = read_table(page)[1].splitlines()[2:]
    assert rows == ['| `a`, `c` | works |', '| `b` | refused: it has 1.5 eyes |']
    assert update_page(page, said) == page
