#!/usr/bin/env python
"""Ask a model about an image: python demo/image_demo.py IMAGE TEXT [options].

The picture of the answer and one PNG per mask are written to --out-dir. Visual prompts get the ids
0, 1, ... in the order given; name them in TEXT as <Prompt0>, <Prompt1>, ...

Examples:
    python demo/image_demo.py demo/shapes.jpg "Please segment the blue circle."
    python demo/image_demo.py demo/shapes.jpg "What is <Prompt0>?" --box 12,21,44,53
"""

import argparse
import sys
from pathlib import Path

DEFAULT_MODEL = Path(__file__).parent / 'checkpoints/pixelsail_tiny_grounding'


class AppendPrompts(argparse.Action):
    """Collect boxes, points and masks in the order of the command line."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Append the values of one option."""
        kind = option_string.lstrip('-')
        sizes = dict(box=4, point=2)
        for value in values:
            if kind in sizes:
                try:
                    value = [float(number) for number in value.split(',')]
                except ValueError:
                    value = []
                if len(value) != sizes[kind]:
                    parser.error(f'{option_string} takes {sizes[kind]} numbers joined by commas')
            namespace.prompts.append({kind: value})


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help="image file, or '-' for a question without image")
    parser.add_argument('text', help='question')
    parser.add_argument(
        '--model',
        default=str(DEFAULT_MODEL),
        metavar='CONFIG_OR_FOLDER',
        help='config file, or folder with config and weights '
        '(default: the checkpoint shipped beside this script)',
    )
    parser.add_argument('--weights', help="checkpoint (default: the folder's own)")
    parser.add_argument(
        '--box',
        dest='prompts',
        nargs='+',
        action=AppendPrompts,
        default=[],
        metavar='X1,Y1,X2,Y2',
        help='visual prompts, in pixels of the image',
    )
    parser.add_argument(
        '--point',
        dest='prompts',
        nargs='+',
        action=AppendPrompts,
        default=[],
        metavar='X,Y',
        help='visual prompts, in pixels of the image',
    )
    parser.add_argument(
        '--mask',
        dest='prompts',
        nargs='+',
        action=AppendPrompts,
        default=[],
        metavar='FILE',
        help='visual prompts: images whose bright pixels are the region',
    )
    parser.add_argument('--answer-prefix', help='text the answer must begin with')
    parser.add_argument('--max-new-tokens', type=int, help='longest answer, in tokens')
    parser.add_argument('--out-dir', default='outputs', help='folder of the results')
    parser.add_argument('--device', help="e.g. 'cpu' or 'cuda:0' (default: the best available)")
    parser.add_argument('--debug', action='store_true', help='show tracebacks of user errors')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Answer the question and write the results."""
    import numpy as np
    from PIL import Image

    from pixelsail_mm.apis import PixelSAILInferencer
    from pixelsail_mm.compat.allocator import keep_freed_memory

    keep_freed_memory()
    for prompt in args.prompts:
        if 'mask' in prompt:
            with Image.open(prompt['mask']) as mask:
                prompt['mask'] = np.asarray(mask.convert('L')) > 127
    ask = PixelSAILInferencer(args.model, args.weights, args.device)
    result = ask(
        None if args.image == '-' else args.image,
        args.text,
        args.prompts,
        max_new_tokens=args.max_new_tokens,
        answer_prefix=args.answer_prefix,
        return_visualization=True,
    )
    print(result['text'])
    folder = Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stem = 'answer' if args.image == '-' else Path(args.image).stem
    files = [folder / f'{stem}_answer.png']
    Image.fromarray(result['visualization']).save(files[0])
    for i, mask in enumerate(result['masks']):
        files.append(folder / f'{stem}_mask{i}.png')
        Image.fromarray(mask.astype(np.uint8) * 255).save(files[-1])
    print('wrote ' + ', '.join(str(file) for file in files))


def main() -> int:
    """Run; return the exit status."""
    args = parse_args()
    from pixelsail_mm.command_line import run_command

    return run_command(lambda: run(args), debug=args.debug)


if __name__ == '__main__':
    sys.exit(main())
