#!/usr/bin/env python
"""Print what a config's model is made of and costs, without weights, data or memory for it.

Examples:
    python tools/analysis_tools/get_model_info.py configs/pixelsail/pixelsail_3b.py --processes 16
    python tools/analysis_tools/get_model_info.py configs/sail/*.py --update-metafile
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument(
        '--processes',
        type=int,
        default=8,
        help='GPUs among which ZeRO shares out the training state (default 8)',
    )
    parser.add_argument(
        '--tokenizer',
        metavar='FOLDER',
        help="tokenizer for the vocabulary, if the config's is not here",
    )
    parser.add_argument(
        '--update-metafile',
        action='store_true',
        help='write the facts into metafile.yml beside the config (a new entry is '
        'begun if there is none) instead of printing them',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='settings that override the config (not with --update-metafile)',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    if args.update_metafile and args.cfg_options:
        parser.error('--cfg-options would describe another model than the config does')
    return args


def run(args: argparse.Namespace) -> None:
    """Print the facts of each config, or bring its metafile up to date."""
    from pixelsail_mm.benchmarks.model_info import model_info, report
    from pixelsail_mm.config import read_config
    from pixelsail_mm.model_zoo.metafile import update

    for name in args.configs:
        if args.update_metafile:
            print(f'{name}: {update(Path(name), ROOT, args.tokenizer)} is up to date')
        else:
            info = model_info(read_config(name, args.cfg_options), args.tokenizer)
            print(f'{name}\n\n{report(info, args.processes)}\n')


def main() -> int:
    """Run; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: run(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
