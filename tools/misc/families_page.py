#!/usr/bin/env python
"""Compare every family of transformers and write the table of docs/bases.md: [--check]."""

import argparse
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'bases.md'


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

    from pixelsail_mm.models.backbones.family_table import known_families, read_table, update_page

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
