#!/usr/bin/env python
"""Time the caching of an expert's features against the expert's bare forward.

Usage: OMP_NUM_THREADS=1 python tools/analysis_tools/benchmark_expert_cache.py [--images 1000]
Up to 2 GB per thousand images are written to the temporary folder and removed afterwards.
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
    parser.add_argument('--images', type=int, default=1000, help='number of images (default 1000)')
    parser.add_argument(
        '--size',
        type=int,
        default=512,
        help="input of the SAM 2 that is timed; 1024 is the real one's, takes four "
        'times as long and makes maps four times as large (default 512)',
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=float('inf'),
        help='stop after this time with what was measured (default: no limit)',
    )
    parser.add_argument('--device', default='cpu', help='cpu (default) or cuda:N')
    parser.add_argument('--folder', help='where to write instead of the temporary folder')
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()

    from pixelsail_mm.benchmarks import expert_cache as benchmark

    with tempfile.TemporaryDirectory(prefix='pixelsail_benchmark_', dir=args.folder) as folder:
        result = benchmark.caching_cost(
            Path(folder), benchmark.small_sam2(args.size), args.images, args.device, args.seconds
        )
    print(benchmark.report(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
