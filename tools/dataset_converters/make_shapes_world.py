"""Draw a ShapesWorld data set.

Example:
    python tools/dataset_converters/make_shapes_world.py --preset mini --out data/shapes_world_mini
"""

import argparse
import json
import sys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw a ShapesWorld data set')
    parser.add_argument('--preset', choices=('mini', 'full'), default='mini')
    parser.add_argument('--out', required=True, help='folder to create')
    parser.add_argument('--seed', type=int, default=0)
    for split in ('train', 'val', 'test'):
        parser.add_argument(f'--{split}', type=int, metavar='N', help=f'number of {split} images')
    parser.add_argument('--size', type=int, metavar='PX', help='side of the images in pixels')
    parser.add_argument('--workers', type=int, default=1, help='processes that draw')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a ShapesWorld data set that is there'
    )
    return parser.parse_args()


def main() -> None:
    """Draw the data set and print its counts."""
    args = parse_args()
    from pixelsail_mm.worlds.shapes_world import make_shapes_world

    counts = {
        split: getattr(args, split)
        for split in ('train', 'val', 'test')
        if getattr(args, split) is not None
    }
    try:
        info = make_shapes_world(
            args.out, args.preset, args.seed, counts, args.size, args.workers, args.overwrite
        )
    except (FileExistsError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(json.dumps(info, indent=2))


if __name__ == '__main__':
    main()
