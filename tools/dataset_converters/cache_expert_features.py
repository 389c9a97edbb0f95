#!/usr/bin/env python
"""Run a vision expert once over the images of a config's training data and keep its features.

A training with expert=dict(type='CachedExpert', root=OUT, image_root=..., of=dict(type=...)) then
needs neither the expert's memory nor its time. Stop it when you like and run it again: what is
written is kept.

Examples:
    # The config's expert already is such a CachedExpert: all else is known from it.
    python tools/dataset_converters/cache_expert_features.py CONFIG --expert sam2
    # The config has live experts; four processes, or four GPUs.
    python tools/dataset_converters/cache_expert_features.py CONFIG --expert SAM2Expert \
        --out data/sam2_features --image-root data --workers 4
    # Data in two places; first of three machines.
    python tools/dataset_converters/cache_expert_features.py CONFIG --expert my_expert.py \
        --out /shared/features --image-root coco=/a/coco sam=/b/sa1b --shard 0/3
"""

import argparse
import os
import re
import sys


def parse_args() -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file; its train_dataloader names the images')
    parser.add_argument(
        '--expert',
        help='name or number of an entry of model.distill, or type of '
        'its expert; or a config file that sets expert = dict(...)',
    )
    parser.add_argument('--out', help='folder to write to (default: root of the CachedExpert)')
    parser.add_argument(
        '--image-root',
        nargs='+',
        metavar='[LABEL=]DIR',
        help='folder that all images lie in, or several with labels (default: that '
        'of the CachedExpert)',
    )
    parser.add_argument('--dtype', default='float16', choices=['float16', 'bfloat16', 'float32'])
    parser.add_argument(
        '--workers',
        type=int,
        default=1,
        help='processes, each with an expert of its own (default 1)',
    )
    parser.add_argument(
        '--device',
        default='auto',
        help='cpu, cuda (workers take the GPUs in turn), cuda:N (default: auto)',
    )
    parser.add_argument(
        '--shard',
        metavar='I/N',
        help='only every N-th image from the I-th on, for N machines (default: '
        'RANK/WORLD_SIZE where these are set)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='settings that override the config'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    environment = f'{os.environ.get("RANK", 0)}/{os.environ.get("WORLD_SIZE", 1)}'
    found = re.fullmatch(r'(\d+)/(\d+)', args.shard or environment)
    args.shard = tuple(map(int, found.groups())) if found else (0, 0)
    if args.shard[0] >= args.shard[1]:
        parser.error('--shard I/N: two numbers with 0 <= I < N, e.g. 0/4')
    if args.workers < 1:
        parser.error('--workers must be at least 1')
    return args


def image_roots(given: list) -> object:
    """One folder, or a dict of them by label."""
    if not given or (len(given) == 1 and '=' not in given[0]):
        return given[0] if given else None
    from pixelsail_mm.errors import ConfigError

    if not all(re.match('[^=/]+=.', value) for value in given):
        raise ConfigError('--image-root: write several folders as LABEL=DIR, e.g. coco=data/coco')
    return dict(value.split('=', 1) for value in given)


def cache(args: argparse.Namespace) -> int:
    """Write the features and print the numbers of cached, skipped and failed images."""
    from tqdm import tqdm

    from pixelsail_mm.config import read_config
    from pixelsail_mm.models.experts.cache.build import cache_features, list_images, make_job

    def show(parts, total):
        with tqdm(total=total, desc='images') as bar:
            for part in parts:
                yield part
                bar.update(part.written + len(part.skipped))

    cfg = read_config(args.config, args.cfg_options)
    expert = args.expert
    if expert is not None and expert.endswith(('.py', '.json', '.yml', '.yaml')):
        expert = read_config(expert)
    job = make_job(cfg, expert, args.out, image_roots(args.image_root), args.dtype, args.device)
    images = list_images(cfg, job.image_root, args.shard)
    done = cache_features(job, images, args.workers, show)
    for reason in done.skipped[:10]:
        print(f'unreadable: {reason}')
    print(
        f'{len(images)} images: {done.written} written ({done.bytes / 1e9:.2f} GB), {done.found} '
        f'there already, {len(done.skipped)} unreadable and skipped'
    )
    print(
        f"train with expert=dict(type='CachedExpert', root={job.out!r}, "
        f'image_root={job.image_root!r}, of={job.expert!r}'
        f'{", allow_missing=True" if done.skipped else ""})'
    )
    return 0


def main() -> int:
    """Run; user errors end in a message."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: cache(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
