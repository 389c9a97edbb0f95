#!/usr/bin/env python
"""Merge a checkpoint with LoRA, QLoRA or separate new rows into a plain one."""

import argparse
import sys


def main() -> int:
    """Parse the command line, merge, print what was written and how to use it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config the checkpoint was trained with')
    parser.add_argument('checkpoint', help='.safetensors, .pth or a DeepSpeed checkpoint folder')
    parser.add_argument('target', help='.safetensors file to write (a folder with --adapter-only)')
    parser.add_argument(
        '--adapter-only',
        action='store_true',
        help="write the decoder's adapter as a PEFT folder instead of merging it",
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.checkpoints.conversion.lora_merge import export_adapter, merge_lora
        from pixelsail_mm.config import read_config

        cfg = read_config(args.config)
        if args.adapter_only:
            number = export_adapter(cfg, args.checkpoint, args.target)
            print(
                f'wrote {number} weights to {args.target}; open it with '
                'peft.PeftModel.from_pretrained(decoder, folder)'
            )
        else:
            number = merge_lora(cfg, args.checkpoint, args.target)
            print(
                f'wrote {number} weights to {args.target}; use them with the same config and '
                '--cfg-options model.backbone.lora=None model.backbone.quantization=None'
            )

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
