#!/usr/bin/env python
"""Show what a model learned from its experts: photo, the expert's features and ours side by side.

Features are shown by their three principal components, in the expert's colours: where both pictures
have a colour, both say the same. The model is a checkpoint of a training (iter_N.pth; exported
weights have no projections onto the experts), the experts run live.

Example:
    python tools/analysis_tools/visualize_distillation.py configs/distill/isnet_photos.py \
        work_dirs/isnet_photos/iter_1000.pth --out outputs/isnet_photos
"""

import argparse
import json
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the training')
    parser.add_argument('checkpoint', help='checkpoint of the training')
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument('--images', type=int, default=4, help='different images (default 4)')
    parser.add_argument(
        '--split',
        default='test',
        choices=['test', 'val', 'train'],
        help='dataloader the images come from (default: test)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='settings that override the config'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    if args.images < 1:
        parser.error('--images must be at least 1')
    return args


def main() -> int:
    """Draw the pictures, print the agreement; return the exit status."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from mmengine.registry import init_default_scope

        from pixelsail_mm.config import read_config
        from pixelsail_mm.registry import SCOPE
        from pixelsail_mm.visualization.distillation import visualize_distillation

        cfg = read_config(args.config, args.cfg_options)
        init_default_scope(cfg.get('default_scope', SCOPE))
        scores = visualize_distillation(cfg, args.checkpoint, args.out, args.images, args.split)
        print(json.dumps(scores, indent=2))
        print(f'pictures: {args.out}')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
