"""Free photos with captions from the installed scikit-image; nothing is downloaded.

Example:
    python tools/dataset_converters/make_skimage_photos.py --out data/skimage_photos --crops 7
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True, help='folder to create')
    parser.add_argument(
        '--source',
        metavar='FOLDER',
        help='folder of the photos (default: that of the installed scikit-image)',
    )
    parser.add_argument(
        '--crops',
        type=int,
        default=0,
        help='further training images cut out of each training photo',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args()


def main() -> int:
    """Write the photos and print their numbers; return the exit status."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.datasets.converters.skimage_photos import make_skimage_photos

        print(make_skimage_photos(args.out, args.source, args.crops))

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
