#!/usr/bin/env python
"""Show what half precision does to a trained model's logits, text and masks."""

import argparse
import sys


def main() -> int:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config the model was trained with, or a folder with one')
    parser.add_argument('checkpoint', help='.safetensors, .pth or a DeepSpeed checkpoint folder')
    parser.add_argument('image', help='image file')
    parser.add_argument('text', help='question about the image')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.benchmarks.precision import compare_precisions, report
        from pixelsail_mm.checkpoints.folders.reading import read_model_config

        cfg, _ = read_model_config(args.config)
        print(report(compare_precisions(cfg, args.checkpoint, args.image, args.text)))

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
