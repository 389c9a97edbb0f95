#!/usr/bin/env python
"""Write a drawn ShapesWorld as every data set of the recipe, in the public folders and files.

The configs for the public data then run on it, with the folder in PIXELSAIL_DATA.

Example:
    python tools/dataset_converters/make_shapes_world.py --preset full --out data/shapes_world
    python tools/dataset_converters/shapes_world_to_public.py data/shapes_world data/shapes_public
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Parse arguments, write, list what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('world', type=Path, help='folder that make_shapes_world.py wrote')
    parser.add_argument('out', type=Path, help='folder to create')
    parser.add_argument('--seed', type=int, default=0, help='seed of what is drawn (default 0)')
    args = parser.parse_args()

    from pixelsail_mm.errors import AnnotationError
    from pixelsail_mm.worlds.shapes_world.formats.public_layout import write_public_layout

    try:
        written = write_public_layout(args.world, args.out, args.seed)
    except (AnnotationError, FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.out}: {len(written)} files and links, for every data set of docs/datasets.md')


if __name__ == '__main__':
    main()
