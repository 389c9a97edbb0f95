#!/usr/bin/env python
"""Check the data of a config: what is missing, misnamed, unreadable, out of range, overlapping.

Usage: python tools/misc/check_data.py CONFIG [--samples 200] [--write-overlap FILE]
       python tools/misc/check_data.py configs/benchmarks/BENCHMARK.py [--model CONFIG]
Of a benchmark the test sets are checked, of other configs all data sets. Nothing is downloaded:
without the tokenizer all but the tokens is checked.
Exit status: 0 no errors, 1 errors (with --strict also warnings), 2 the config cannot be read.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--model',
        metavar='CONFIG',
        help='config of the model, for the configs of '
        'configs/benchmarks (default: pixelsail_0.5b.py)',
    )
    parser.add_argument(
        '--samples', type=int, default=200, help='samples loaded of each data set (default 200)'
    )
    parser.add_argument(
        '--write-overlap',
        metavar='FILE',
        help='write the images that are both trained on and evaluated; readers '
        'leave them out with exclude_images=FILE',
    )
    parser.add_argument('--strict', action='store_true', help='warnings fail as well')
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='settings that override the config'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args()


def check(args: argparse.Namespace) -> int:
    """Check, print the report, return the exit status."""
    # A tokenizer that is not on this machine would be asked for again and again.
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    from tqdm import tqdm

    import pixelsail_mm.datasets  # noqa: F401  registers the readers
    from pixelsail_mm.config import is_benchmark, read_config
    from pixelsail_mm.datasets.checks import check_config
    from pixelsail_mm.datasets.checks.leaves import LOADERS
    from pixelsail_mm.datasets.checks.report import ERROR, WARNING
    from pixelsail_mm.datasets.files.image_keys import write_image_keys

    cfg = read_config(args.config, args.cfg_options, args.model)
    loaders = ('test_dataloader',) if is_benchmark(cfg) else tuple(LOADERS)
    report = check_config(
        cfg, args.samples, lambda items, name: tqdm(items, desc=name, leave=False), loaders
    )
    if is_benchmark(cfg):
        print('The test sets of a benchmark. What a model is trained on, its own config checks.\n')
    print(report.text())
    if args.write_overlap:
        write_image_keys(report.overlap, args.write_overlap)
        print(f'{len(report.overlap)} images written to {args.write_overlap}')
    return int(report.count(ERROR) > 0 or (args.strict and report.count(WARNING) > 0))


def main() -> int:
    """Run the check; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: check(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
