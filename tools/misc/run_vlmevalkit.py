"""Evaluate a checkpoint with VLMEvalKit; what follows `--` goes to the kit's run.py.

Examples:
    python tools/misc/run_vlmevalkit.py --kit ~/VLMEvalKit --config CONFIG --weights CKPT -- \
        --data MME MMBench_DEV_EN SEEDBench_IMG MMStar --work-dir outputs/vqa
    torchrun --nproc-per-node 8 tools/misc/run_vlmevalkit.py --kit ~/VLMEvalKit --config CONFIG \
        --weights CKPT -- --data MME
"""

import argparse
import importlib.util
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kit', required=True, type=Path, help="folder of the kit's run.py")
    parser.add_argument('--config', required=True, help='config or checkpoint folder of the model')
    parser.add_argument('--weights', help="checkpoint (default: the folder's own)")
    parser.add_argument('--max-new-tokens', type=int, default=512, help='longest answer, in tokens')
    parser.add_argument(
        '--prompts',
        choices=('pixel_sail', 'kit'),
        default='pixel_sail',
        help="the authors' protocol, or the kit's default prompts",
    )
    parser.add_argument('--name', default='pixelsail', help='name of the model in the results')
    parser.add_argument('kit_args', nargs='*', help='arguments of run.py, without --model')
    return parser.parse_args()


def load_kit(folder: Path):
    """Import run.py, which gives this process its GPU: nothing may have started CUDA before."""
    path = folder.expanduser().absolute() / 'run.py'
    if not path.is_file():
        sys.exit(
            f'error: {path}: no such file; --kit must name a clone of '
            'https://github.com/open-compass/VLMEvalKit'
        )
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location('vlmevalkit_run', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        sys.exit(f'error: {error}; install the kit with `pip install -e {path.parent}`')
    return module


def main() -> None:
    """Add the model to the kit's list and start the kit."""
    args = parse_args()
    kit = load_kit(args.kit)
    from pixelsail_mm.evaluation.harnesses.vlmevalkit import register

    register(
        args.name,
        config=args.config,
        weights=args.weights,
        max_new_tokens=args.max_new_tokens,
        prompts=args.prompts,
    )
    sys.argv = [str(args.kit / 'run.py'), '--model', args.name, *args.kit_args]
    if hasattr(kit, 'load_env'):
        kit.load_env()
    kit.main()


if __name__ == '__main__':
    main()
