#!/usr/bin/env python
"""Time the data pipeline, the index of large annotation files and the mask metric.

Usage: python tools/analysis_tools/benchmark_data.py [--records 3000000]
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
        '--records',
        type=int,
        default=3_000_000,
        help='records of the index (default 3,000,000: 3 GB of files in the '
        'temporary folder, removed afterwards)',
    )
    parser.add_argument(
        '--seconds', type=float, default=10.0, help='how long to measure the pipeline (default 10)'
    )
    parser.add_argument('--out', type=Path, help='also write the figures to this JSON file')
    args = parser.parse_args()

    import torch

    import pixelsail_mm.datasets  # noqa: F401  registers the readers
    from pixelsail_mm.benchmarks import data as benchmark

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix='pixelsail_benchmark_') as folder:
        folder = Path(folder)
        result = {
            **benchmark.pipeline_rate(folder, args.seconds),
            **benchmark.metric_cost(),
            **benchmark.index_cost(folder, args.records),
        }
    print(benchmark.report(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
