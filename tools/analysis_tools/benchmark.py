#!/usr/bin/env python
"""Time training and prediction at the reference size: python tools/analysis_tools/benchmark.py."""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Parse arguments, run the benchmark, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=7, help='timed runs (default 7)')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default 2)')
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()

    from pixelsail_mm.benchmarks.step import report, run_benchmark

    result = run_benchmark(args.repeats, args.threads)
    print(report(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
