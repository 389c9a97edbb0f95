#!/usr/bin/env python
"""Convert EVE-7B-HD-v2.0 to weights that pixelsail_7b_eve.py can start from (`load_from`)."""

import argparse
import sys


def main() -> int:
    """Parse the command line, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='folder of the model, or its .safetensors or .bin file')
    parser.add_argument('target', help='file to write, .safetensors or .pth')
    parser.add_argument(
        '--tokenizer', required=True, help='folder or hub name of the tokenizer in the config'
    )
    parser.add_argument(
        '--ignore-unknown',
        action='store_true',
        help='drop weights whose names belong to no part of EVEv2',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from functools import partial

        from pixelsail_mm.checkpoints.conversion.eve_keys import eve_to_mm
        from pixelsail_mm.checkpoints.conversion.rewrite import convert_checkpoint
        from pixelsail_mm.tokenization import build_tokenizer

        rename = partial(
            eve_to_mm, tokenizer=build_tokenizer(args.tokenizer), ignore_unknown=args.ignore_unknown
        )
        print(convert_checkpoint(args.source, args.target, rename))
        print(f'wrote {args.target}')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
