"""Stub: command line of the kit, which asks one question of every benchmark."""

import argparse
import json

from vlmeval.config import supported_VLM


def main():
    """Build the models and ask."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', nargs='+')
    parser.add_argument('--data', nargs='+')
    args = parser.parse_args()
    for name in args.model:
        model = supported_VLM[name]()
        for dataset in args.data:
            line = dict(index=0, question='Which animal?', A='cat', B='dog')
            message = model.build_prompt(line, dataset=dataset)
            answer = model.generate(message, dataset=dataset)
            print(json.dumps(dict(model=name, dataset=dataset, message=message, answer=answer)))


if __name__ == '__main__':
    main()
