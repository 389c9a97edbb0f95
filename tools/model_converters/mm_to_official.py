#!/usr/bin/env python
"""Convert a checkpoint of this package to the weight names of the authors' release."""

import argparse
import sys


def main() -> int:
    """Parse the command line, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='.safetensors, .pth, or a folder of sharded safetensors')
    parser.add_argument('target', help='file to write, .safetensors or .pth')
    parser.add_argument(
        '--ignore-unknown',
        action='store_true',
        help='drop weights whose names belong to neither side',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from functools import partial

        from pixelsail_mm.checkpoints.conversion.official_keys import mm_to_official
        from pixelsail_mm.checkpoints.conversion.rewrite import convert_checkpoint

        rename = partial(mm_to_official, ignore_unknown=args.ignore_unknown)
        print(convert_checkpoint(args.source, args.target, rename))
        print(f'wrote {args.target}')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
