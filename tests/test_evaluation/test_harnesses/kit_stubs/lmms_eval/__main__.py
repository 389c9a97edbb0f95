"""Stub: command line of the kit, which asks one question of every task."""

import argparse
import json
from types import SimpleNamespace

from lmms_eval.models import get_model


def cli_evaluate():
    """Build the model and ask."""
    parser = argparse.ArgumentParser()
    for option in ('--model', '--model_args', '--tasks'):
        parser.add_argument(option)
    args = parser.parse_args()
    settings = dict(pair.split('=') for pair in args.model_args.split(','))
    model = get_model(args.model)(**settings, batch_size=1)
    for task in args.tasks.split(','):
        model.task_dict[task] = dict(test=[dict(question='Is it a cat?')])
        request = SimpleNamespace(
            args=('Is it a cat? Yes or no', {}, lambda doc: [], 0, task, 'test')
        )
        print(
            json.dumps(dict(model=args.model, task=task, answer=model.generate_until([request])[0]))
        )
