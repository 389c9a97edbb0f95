#!/usr/bin/env python
"""Write docs/datasets.md from the manifest: python tools/misc/data_docs.py [--check]."""

import argparse
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'datasets.md'


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; status 1 if the page is not what the manifest says',
    )
    args = parser.parse_args()

    from pixelsail_mm.datasets.manifest.page import render_page

    page = render_page()
    if args.check:
        current = PAGE.is_file() and PAGE.read_text(encoding='utf-8') == page
        print(f'{PAGE} is {"current" if current else "out of date: run tools/misc/data_docs.py"}')
        return int(not current)
    PAGE.write_text(page, encoding='utf-8')
    print(f'wrote {PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
