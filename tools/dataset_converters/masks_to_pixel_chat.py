#!/usr/bin/env python
"""Turn images, mask files and a table of phrases into train.json and val.json.

FOLDER holds images/, masks/ and masks.csv:

    image,mask,phrase
    0001.jpg,0001_car.png,the red car
    0001.jpg,0001_dog.png,the dog

Pixels of a mask other than 0 are inside. A further column `split` (train, val or test) says where
an image goes. Rows that cannot be used are left out, counted and shown. See docs/custom_data.md.

Examples:
    python tools/dataset_converters/masks_to_pixel_chat.py data/mine
    python tools/dataset_converters/masks_to_pixel_chat.py data/mine --draw-example
"""

import argparse
import sys

_SHOWN = 3


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', help='folder of the data set')
    parser.add_argument(
        '--table', default='masks.csv', metavar='NAME', help='table in FOLDER (default masks.csv)'
    )
    parser.add_argument(
        '--val-share',
        type=float,
        default=0.1,
        metavar='X',
        help='share of the images that go to val.json where the table does not say (default 0.1)',
    )
    parser.add_argument(
        '--question',
        default='Please segment {x}.',
        help='what is asked; {x} is the phrase (default: %(default)r)',
    )
    parser.add_argument(
        '--exif',
        choices=['rotate', 'ignore'],
        help='pictures with an EXIF rotation: their masks are of what viewers show (rotate) or of '
        'the stored pixels (ignore); by default as the size of a mask says',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the files written before')
    parser.add_argument(
        '--draw-example',
        action='store_true',
        help='convert nothing: draw images, masks and a table into FOLDER, to try this out',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args()


def draw(args: argparse.Namespace) -> None:
    """Draw the example."""
    from pixelsail_mm.worlds.shapes_world.mask_table import draw_mask_table

    drawn = draw_mask_table(args.folder)
    print(f'{args.folder}: ' + ', '.join(f'{count} {what}' for what, count in drawn.items()))


def convert(args: argparse.Namespace) -> None:
    """Convert; print what was written and what was left out."""
    from tqdm import tqdm

    from pixelsail_mm.datasets.converters.mask_table import masks_to_pixel_chat

    done = masks_to_pixel_chat(
        args.folder,
        args.table,
        args.val_share,
        args.question,
        args.overwrite,
        lambda rows: tqdm(rows, desc='rows', leave=False),
        args.exif,
    )
    for kind, messages in done.skipped.items():
        print(f'left out: {kind}: {len(messages)} rows')
        for message in messages[:_SHOWN]:
            print(f'  {message}')
    for split, images in done.images.items():
        print(f'{args.folder}/{split}.json: {images} images, {done.turns[split]} phrases')


def main() -> int:
    """Run; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: (draw if args.draw_example else convert)(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
