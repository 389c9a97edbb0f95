#!/usr/bin/env python
"""Parse the annotations of a config once, before a training on many processes.

Usage: python tools/misc/build_index.py CONFIG [--workers 8]
Everything goes into the folders named by the readers' `index_cache`: parsed annotations and, for
samplers that group by length, the true token length of every sample. A training finds it there.
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--workers', type=int, default=1, help='readers that are built at once (default 1)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='settings that override the config'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args()


def build(args: argparse.Namespace) -> int:
    """Build everything and print a line per reader."""
    from tqdm import tqdm

    from pixelsail_mm.config import read_config
    from pixelsail_mm.datasets.manifest.prepare import prepare_config

    done = prepare_config(
        read_config(args.config, args.cfg_options),
        args.workers,
        lambda parts, total: tqdm(parts, total=total, desc='readers'),
    )
    for part in done:
        print(f'{part.key}: {part.items} items, {part.seconds:.1f} s')
    return 0


def main() -> int:
    """Run; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: build(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
