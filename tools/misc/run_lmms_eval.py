"""Evaluate a checkpoint with lmms-eval: its own command line with the model `pixelsail` added.

Examples:
    python tools/misc/run_lmms_eval.py --model_args config=CONFIG,weights=CKPT \
        --tasks mme,mmbench_en_dev --output_path outputs/vqa
    accelerate launch --num_processes 8 tools/misc/run_lmms_eval.py \
        --model_args config=CONFIG,weights=CKPT,max_new_tokens=512 --tasks mmstar
"""

import sys


def main() -> None:
    """Add the model to the kit's list and start the kit."""
    from pixelsail_mm.evaluation.harnesses.answering import KitError
    from pixelsail_mm.evaluation.harnesses.lmms_eval import register

    try:
        name = register()
    except KitError as error:
        sys.exit(f'error: {error}')
    if not any(argument.split('=')[0] == '--model' for argument in sys.argv[1:]):
        sys.argv[1:1] = ['--model', name]
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == '__main__':
    main()
