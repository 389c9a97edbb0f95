r"""Print the table that closes ``tools/quickstart.sh``.

Example:
    python tools/misc/quickstart_report.py results.json \
        --row "cIoU" "refseg/cIoU" ">=0.45" --stage training=412 --pictures vis/
"""

import argparse
import json
import operator
import re
import sys
from pathlib import Path

COMPARE = {'>=': operator.ge, '<=': operator.le}
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')


def parse_target(text: str, metrics: dict) -> tuple[str, float]:
    """Comparison and bound of ``'>=0.45'``, or of ``'<=0.5*refseg/cIoU'`` (share of a metric)."""
    match = re.fullmatch(r'(>=|<=)\s*(\d+(?:\.\d+)?)(?:\*(\S+))?', text.strip())
    if match is None:
        raise ValueError(
            f"target {text!r} is neither '>=NUMBER' nor '<=NUMBER' nor '<=NUMBER*METRIC'"
        )
    factor = metrics[match.group(3)] if match.group(3) else 1.0
    return match.group(1), float(match.group(2)) * factor


def check_rows(metrics: dict, rows: list) -> list[dict]:
    """Compare every row's metric with its target.

    Args:
        metrics: Metric name to number.
        rows: ``[label, key, target]`` triples, target as in :func:`parse_target`.

    Returns:
        list[dict]: ``label``, ``value``, ``target`` and ``passed`` of every row.

    Raises:
        KeyError: A metric is missing; the message lists those the file has.
    """
    checked = []
    for label, key, target in rows:
        if key not in metrics:
            raise KeyError(f'the result file has no metric {key!r}; it has {sorted(metrics)}')
        sign, bound = parse_target(target, metrics)
        passed = COMPARE[sign](metrics[key], bound)
        checked.append(
            dict(label=label, value=metrics[key], target=f'{sign}{bound:.3g}', passed=passed)
        )
    return checked


def format_table(rows: list[dict], stages: list[tuple[str, int]]) -> str:
    """Lay out the metrics with their verdicts, then the seconds of every stage."""
    lines = [f'{"":40s} {"value":>8s} {"target":>8s}']
    for row in rows:
        verdict = 'pass' if row['passed'] else 'FAIL'
        lines.append(f'{row["label"]:40s} {row["value"]:8.3f} {row["target"]:>8s}  {verdict}')
    lines.extend(f'{"time: " + name:40s} {seconds:7d}s' for name, seconds in stages)
    if stages:
        lines.append(f'{"time: all":40s} {sum(seconds for _, seconds in stages):7d}s')
    return '\n'.join(lines)


def list_pictures(folder: Path, limit: int = 8) -> list[str]:
    """Paths of the first ``limit`` pictures under ``folder``, in name order."""
    pictures = sorted(p for p in folder.rglob('*') if p.suffix.lower() in PICTURE_SUFFIXES)
    lines = [str(path) for path in pictures[:limit]]
    if len(pictures) > limit:
        lines.append(f'... and {len(pictures) - limit} more in {folder}')
    return lines


def parse_stage(text: str) -> tuple[str, int]:
    """Split ``NAME=SECONDS``."""
    name, _, seconds = text.rpartition('=')
    if not name:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=SECONDS')
    return name, int(seconds)


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('results', type=Path, help='file written by tools/test.py --out')
    parser.add_argument(
        '--row',
        nargs=3,
        action='append',
        default=[],
        metavar=('LABEL', 'METRIC', 'TARGET'),
        help="e.g. cIoU refseg/cIoU '>=0.4'",
    )
    parser.add_argument(
        '--stage', type=parse_stage, action='append', default=[], metavar='NAME=SECONDS'
    )
    parser.add_argument('--pictures', type=Path, help='folder of predicted masks')
    return parser.parse_args()


def main() -> int:
    """Print table and picture paths; 0 if every target is met, else 1."""
    args = parse_args()
    results = json.loads(args.results.read_text(encoding='utf-8'))
    rows = check_rows(results.get('metrics', results), args.row)
    print(format_table(rows, args.stage))
    print(f'results: {args.results}')
    if args.pictures:
        print('\n'.join(['pictures:', *list_pictures(args.pictures)]))
    return 0 if all(row['passed'] for row in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
