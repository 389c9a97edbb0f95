#!/usr/bin/env python
"""Write a trained model as a Hugging Face folder, which init_model and the inferencer open too."""

import argparse
import sys


def main() -> int:
    """Parse the command line, write the folder, print its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config the model was trained with, or a folder with one')
    parser.add_argument('checkpoint', help='.safetensors, .pth or a DeepSpeed checkpoint folder')
    parser.add_argument('folder', help='folder to write; an earlier export there is replaced')
    parser.add_argument('--dtype', help='float32, float16 or bfloat16; default: as trained')
    parser.add_argument(
        '--max-shard-size',
        default='5GB',
        help='largest size of a file of weights, e.g. 500MB (default: 5GB)',
    )
    parser.add_argument(
        '--training-samples',
        type=int,
        metavar='N',
        help='training samples to read for the size of pictures and the words that '
        'the model was trained on (default: 2000; 0 reads none)',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.checkpoints.conversion.training_record import SAMPLES
        from pixelsail_mm.checkpoints.folders.reading import read_model_config
        from pixelsail_mm.hf.export import export_hf

        cfg, _ = read_model_config(args.config)
        folder = export_hf(
            cfg,
            args.checkpoint,
            args.folder,
            args.dtype,
            args.max_shard_size,
            SAMPLES if args.training_samples is None else args.training_samples,
        )
        size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
        print(f'wrote {folder} ({size / 1e6:.1f} MB)')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
