#!/usr/bin/env python
"""Compare every family of transformers and write the table of docs/bases.md: [--check]."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'bases.md'
WORKS = 'works'
_BEGIN = '<!-- families of transformers {}, by tools/misc/families_page.py -->'
_END = '<!-- end of families -->'
_TABLE = re.compile(_BEGIN.format(r'(\S+)') + '\n(.*?)' + _END, re.DOTALL)
_TRAINED = dict(original_max_position_embeddings=512)
# What a family's default config leaves open, or has in another form than its models; and kinds of
# `rope_scaling`, each in one family.
_SETTINGS: dict[str, dict[str, Any]] = {
    'dots1': dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    'granitemoehybrid': dict(layer_types=['mamba', 'attention'], num_hidden_layers=2),
    'hunyuan_v1_dense': dict(head_dim=128),
    'hunyuan_v1_moe': dict(head_dim=128),
    'lfm2': dict(layer_types=['conv', 'full_attention'], num_hidden_layers=2),
    'llama:dynamic': dict(rope_scaling=dict(rope_type='dynamic', factor=4.0)),
    'llama:linear': dict(rope_scaling=dict(rope_type='linear', factor=4.0)),
    'llama:llama3': dict(
        rope_scaling=dict(
            rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **_TRAINED
        )
    ),
    'llama:yarn': dict(rope_scaling=dict(rope_type='yarn', factor=4.0, **_TRAINED)),
    'ministral': dict(head_dim=128),
    'nemotron': dict(num_key_value_heads=8),
    'phi3:longrope': dict(
        rope_scaling=dict(type='longrope', short_factor=[1.0] * 48, long_factor=[4.0] * 48)
    ),
}


def known_families() -> list[str]:
    """Every family of causal language models that this transformers has, and kinds of scaling.

    ``'llama:yarn'`` is the family ``llama`` with ``rope_scaling`` of type ``yarn``.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    families = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    return sorted(families | {case for case in _SETTINGS if case.split(':')[0] in families})


def verdict(case: str) -> str:
    """Compare a family in its default form.

    Args:
        case: One of :func:`known_families`.

    Returns:
        ``'works'``, or the reason why it is refused.
    """
    from transformers import AutoConfig

    from pixelsail_mm.models.backbones.family_check import family_misfit

    try:
        config = AutoConfig.for_model(case.split(':')[0], **_SETTINGS.get(case, {}))
    except ValueError:  # models made of others, which must be given
        return 'its config has no defaults to compare with'
    misfit = family_misfit(config)
    return WORKS if misfit is None else misfit.reason


def render_table(verdicts: dict[str, str]) -> str:
    """Give the lines of the table: families that share a verdict share a row, working ones first.

    Args:
        verdicts: Family -> :func:`verdict`.
    """
    import transformers

    rows: dict[str, list[str]] = {}
    for family, said in sorted(verdicts.items()):
        rows.setdefault(said, []).append(f'`{family}`')
    order = sorted(rows, key=lambda said: (said != WORKS, -len(rows[said]), said))
    return '\n'.join(
        [
            f'| families of transformers {transformers.__version__} | |',
            '|---|---|',
            *(f'| {", ".join(rows[said])} | {_shown(said)} |' for said in order),
            '',
        ]
    )


def _shown(said: str) -> str:
    return said if said == WORKS else f'refused: {said}'


def read_table(page: str) -> tuple[str, str]:
    """Version of transformers and lines of the table in the text of a page."""
    return _TABLE.search(page).groups()


def read_verdicts(page: str) -> dict[str, str]:
    """Family -> verdict, as the table in the text of a page says."""
    rows = [row.strip('| ').split(' | ') for row in read_table(page)[1].splitlines()[2:]]
    return {
        family: said.removeprefix('refused: ')
        for families, said in rows
        for family in re.findall(r'`(\S+?)`', families)
    }


def update_page(page: str, families: Iterable[str]) -> str:
    """Give the text of a page with its table made anew for the installed transformers.

    Args:
        page: Text that has the table's markers.
        families: Of :func:`known_families`.
    """
    import transformers

    table = render_table({family: verdict(family) for family in families})
    begin = _BEGIN.format(transformers.__version__)
    return _TABLE.sub(lambda _: f'{begin}\n{table}{_END}', page)


def main() -> int:
    """Write the table, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; status 1 if the table is not what the check of '
        'families says. A table for another transformers is not compared',
    )
    args = parser.parse_args()

    import transformers

    current = PAGE.read_text(encoding='utf-8')
    version = read_table(current)[0]
    if args.check and version != transformers.__version__:
        print(
            f'{PAGE} is for transformers {version}, here is {transformers.__version__}: '
            'not compared'
        )
        return 0
    page = update_page(current, known_families())
    if args.check:
        same = current == page
        print(f'{PAGE} is {"current" if same else "out of date: run tools/misc/families_page.py"}')
        return int(not same)
    PAGE.write_text(page, encoding='utf-8')
    print(f'wrote {PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
