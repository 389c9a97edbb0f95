"""Three real photos with instance masks and referring sentences, in the RefCOCO layout.

The photos (PASCAL VOC2011) come with the source archive of the PyPI package labelme, which is
downloaded (14 MB) from the package index that pip is set to, checked and read without running
anything of it. Do not commit or redistribute them.

Examples:
    python tools/dataset_converters/make_labelme_mini.py --out data/labelme_mini
    python tools/dataset_converters/make_labelme_mini.py --out data/labelme_mini \
        --archive labelme-6.3.1.tar.gz
"""

import argparse
import json
import sys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True, help='folder to create')
    parser.add_argument(
        '--archive', metavar='FILE', help='labelme-6.3.1.tar.gz, if it is here already'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the data set that is there'
    )
    return parser.parse_args()


def main() -> None:
    """Write the data set and print its counts."""
    args = parse_args()
    from pixelsail_mm.datasets.converters import make_labelme_mini

    try:
        info = make_labelme_mini(args.out, args.archive, args.overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(json.dumps(info, indent=2))


if __name__ == '__main__':
    main()
