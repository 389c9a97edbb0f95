#!/usr/bin/env python
"""Convert a language model in a GGUF file to a local base: config, safetensors and tokenizer."""

import argparse
import sys


def main() -> int:
    """Parse the command line, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='the .gguf file')
    parser.add_argument('target', help='folder to write, for `backbone.llm` and `tokenizer`')
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='precision of the weights written',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.checkpoints.conversion.gguf import gguf_to_hf

        facts = gguf_to_hf(args.source, args.target, args.dtype)
        print(
            '\n'.join(
                f'{name:12}{value:,}' if isinstance(value, int) else f'{name:12}{value}'
                for name, value in facts.items()
            )
        )
        print(f'wrote {args.target}')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
