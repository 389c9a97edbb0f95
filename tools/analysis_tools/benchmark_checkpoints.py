#!/usr/bin/env python
"""Measure loading of a 0.5B checkpoint (time) and consolidation of its ZeRO-3 shards (memory).

Usage: python tools/analysis_tools/benchmark_checkpoints.py [--folder DIR]
"""

import argparse
import json
import tempfile
from pathlib import Path


def main() -> None:
    """Parse arguments, run the benchmark, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--folder',
        type=Path,
        help='where to write the checkpoints: 10 GB on the '
        'disk, removed afterwards (default: the temporary folder)',
    )
    parser.add_argument('--rounds', type=int, default=5, help='repetitions of timings (default 5)')
    parser.add_argument('--shards', type=int, default=4, help='ZeRO-3 shards (default 4)')
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()

    import torch

    from pixelsail_mm.benchmarks import checkpoints as benchmark

    torch.set_num_threads(1)
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='pixelsail_benchmark_', dir=args.folder) as folder:
        folder = Path(folder)
        model = benchmark.build_model()
        result = benchmark.loading(model, folder, args.rounds)
        result |= benchmark.loading(model.bfloat16(), folder, args.rounds)
        result |= benchmark.consolidation(model, folder, args.shards)
    print(benchmark.report(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
