#!/usr/bin/env python
"""Put the parts of a DeepSpeed ZeRO checkpoint together, without a GPU and with little memory."""

import argparse
import sys


def main() -> int:
    """Parse the command line, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='checkpoint folder with *_model_states.pt (iter_N.pth)')
    parser.add_argument('target', help='.safetensors file; with --max-shard-size a folder')
    parser.add_argument(
        '--dtype',
        help='float32, float16 or bfloat16; default: as stored, which '
        'is float32 for all that was trained',
    )
    parser.add_argument('--max-shard-size', help='write shards of at most this size, e.g. 5GB')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.checkpoints.conversion.rewrite import zero_to_safetensors

        print(zero_to_safetensors(args.folder, args.target, args.dtype, args.max_shard_size))
        print(f'wrote {args.target}')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
