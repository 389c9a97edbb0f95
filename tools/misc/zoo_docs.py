#!/usr/bin/env python
"""Write docs/model_zoo.md from the metafiles: python tools/misc/zoo_docs.py [--check]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'model_zoo.md'


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; status 1 if the page is not what the metafiles say',
    )
    args = parser.parse_args()

    from pixelsail_mm.model_zoo.page import render_page

    page = render_page(ROOT)
    if args.check:
        current = PAGE.is_file() and PAGE.read_text(encoding='utf-8') == page
        print(f'{PAGE} is {"current" if current else "out of date: run tools/misc/zoo_docs.py"}')
        return int(not current)
    PAGE.write_text(page, encoding='utf-8')
    print(f'wrote {PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
