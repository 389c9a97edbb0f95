#!/usr/bin/env python
"""Train a model: python tools/train.py CONFIG [options]; several processes: tools/dist_train.sh."""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CKPT',
        help='continue from CKPT, or from the newest complete checkpoint in the work dir',
    )
    parser.add_argument(
        '--deepspeed',
        metavar='ZERO',
        help='zero1, zero2, zero3, zero2_offload, zero3_offload, a DeepSpeed JSON file, or none',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started the processes',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='settings that override the config, e.g. train_cfg.max_iters=100 model.distill="[]"',
    )
    parser.add_argument('--seed', type=int, help='seed of data order, dropout and point sampling')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by some launchers'
    )
    return parser.parse_args()


def main() -> int:
    """Train; return the exit status."""
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.engine.launch import train

        train(args)

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
