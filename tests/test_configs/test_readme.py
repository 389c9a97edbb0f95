"""The table of configs/pixelsail/README.md: every config, from the smallest to the largest."""

import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / 'configs/pixelsail'


def size(parameters):
    """Three digits: ``1.3 M``, ``510 M``, ``3.12 B``."""
    billions = parameters >= 1e9
    return f'{parameters / (1e9 if billions else 1e6):.3g} {"B" if billions else "M"}'


def test_sizes_are_right_and_rise():
    """The metafile's parameters are counted from the configs, see test_metafiles.py."""
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    parameters = {model['Name']: model['Metadata']['Parameters'] for model in models}
    rows = re.findall(
        r'^\| (`pixelsail_.*?) \| (.*?) \|', (FOLDER / 'README.md').read_text(), re.MULTILINE
    )
    names = [re.findall(r'`(pixelsail_.*?)\.py`', cell) for cell, _ in rows]
    assert {name for row in names for name in row} == parameters.keys()
    for row, (_, shown) in zip(names, rows):
        assert {size(parameters[name]) for name in row} == {shown}
    sizes = [parameters[row[0]] for row in names]
    assert sizes == sorted(sizes)
