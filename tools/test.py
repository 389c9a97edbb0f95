#!/usr/bin/env python
"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='.safetensors or .pth file, or a DeepSpeed folder')
    parser.add_argument(
        '--model',
        metavar='CONFIG',
        help='config of the model, for the configs of '
        'configs/benchmarks (default: pixelsail_0.5b.py)',
    )
    parser.add_argument(
        '--work-dir', help='folder of logs and predictions (default: work_dirs/NAME_OF_CONFIG)'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue an interrupted test: take the predictions that are in '
        'WORK_DIR/predictions, of any number of processes, and predict only the '
        'rest; the metrics are those of an uninterrupted test. Every test writes '
        'its predictions there, and without --resume replaces those of the test '
        'before',
    )
    parser.add_argument('--out', metavar='JSON', help='write metrics and all settings here')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    parser.add_argument('--show-num', type=int, default=20, help='samples to draw (default: 20)')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='settings that override the config'
    )
    parser.add_argument('--seed', type=int, help='seed of the test')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by some launchers'
    )
    return parser.parse_args()


def main() -> int:
    """Test; return the exit status."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.engine.launch import test

        test(args)

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
