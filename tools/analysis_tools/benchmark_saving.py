#!/usr/bin/env python
"""Measure how long a training waits for a checkpoint.

Usage: python tools/analysis_tools/benchmark_saving.py [--deepspeed zero2]
Several processes: torchrun --nproc-per-node 2 tools/analysis_tools/benchmark_saving.py --launcher pytorch
"""  # noqa: E501

import argparse
import json
import tempfile
from pathlib import Path


def main() -> None:
    """Parse arguments, run the benchmark, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--deepspeed', help='zero1, zero2, zero3 or a JSON file')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none')
    parser.add_argument('--layers', type=int, default=30, help='layers of the model (default 30)')
    parser.add_argument('--width', type=int, default=2048, help='their width (default 2048)')
    parser.add_argument('--rounds', type=int, default=5, help='saves of each way (default 5)')
    parser.add_argument('--steps', type=int, default=10, help='steps around a save (default 10)')
    parser.add_argument('--folder', type=Path, help='where to write (default: the temporary one)')
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()

    from mmengine.dist import all_gather_object, barrier, is_main_process

    from pixelsail_mm.benchmarks import saving

    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='pixelsail_saving_', dir=args.folder) as own:
        model = saving.Layers(args.layers, args.width)
        strategy = saving.build_strategy(model, args.deepspeed, args.launcher, Path(own))
        folder = Path(all_gather_object(own)[0])
        result = saving.run(strategy, folder, args.width, args.rounds, args.steps)
        barrier()
    if is_main_process():
        print(saving.report(result))
        if args.out:
            args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
