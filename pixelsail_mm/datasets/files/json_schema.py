"""Check values against a JSON schema of ``schemas/``, and say a fault in the schema's own words."""

from __future__ import annotations

import json
import re
from functools import reduce
from importlib.resources import files
from operator import getitem
from typing import TYPE_CHECKING, Any

from pixelsail_mm.errors import BadSampleError

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

# Of several faults at one place the first of these explains the others.
_TELLING = ('AdditionalProperties', 'Required', 'Type')


class Schema:
    """A definition of a shipped schema.

    jsonschema-rs compares; the ``description`` nearest to the rule that is broken tells the user
    what is wanted.

    Args:
        file_name: File in ``schemas/``.
        definition: Name in its ``$defs``.
    """

    def __init__(self, file_name: str, definition: str) -> None:
        import jsonschema_rs

        text = (files('pixelsail_mm.datasets') / 'schemas' / file_name).read_text(encoding='utf-8')
        self._schema = json.loads(text)
        rule = {key: self._schema[key] for key in ('$schema', '$defs')}
        rule['$ref'] = f'#/$defs/{definition}'
        self._validator = jsonschema_rs.validator_for(rule, mask='it')

    def check(self, value: Any, file: str, key: str) -> None:
        """Compare a value as ``json`` reads it; NaN and infinity are no numbers.

        Raises:
            BadSampleError: The schema does not allow it; names the file, its ``key`` and the first
                fault.
        """
        try:
            if self._validator.is_valid(value):
                return
            faults = list(self._validator.iter_errors(value))
        except UnicodeEncodeError as error:  # half of an escaped pair, which JSON allows
            raise BadSampleError(
                file,
                key,
                f'has text that is not Unicode ({error.reason}: '
                f'{error.object[error.start : error.end]!r}); correct it',
            ) from error
        fault = _most_telling(faults)
        steps = (
            f'[{step}]' if isinstance(step, int) else f'.{step}' for step in fault.instance_path
        )
        reason = self._reason(fault, reduce(getitem, fault.instance_path, value))
        raise BadSampleError(file, key + ''.join(steps), reason)

    def _reason(self, fault: ValidationError, value: Any) -> str:
        kind, facts = _kind(fault), fault.kind.as_dict()
        rules = [self._schema]
        for step in fault.schema_path[:-1]:
            rules.append(rules[-1][step])
        wanted = next(
            rule['description']
            for rule in reversed(rules)
            if isinstance(rule, dict) and 'description' in rule
        )
        if kind == 'AdditionalProperties':
            known = list(rules[-1]['properties'])
            return f'has unknown keys {facts["unexpected"][:12]}; known are {known}'
        if kind == 'Required':
            asked = rules[-1].get('required', [])
            missing = [key for key in asked if key not in value] or [facts['property']]
            return f'lacks {missing}; has {list(value)}'
        if kind == 'PropertyNames':
            return f'cannot hold the key {fault.kind.error.instance!r}; wanted: {wanted}'
        if kind == 'Not':
            found = re.search(facts['schema']['pattern'], value)[0]
            return f'{found} cannot be used; wanted: {wanted}'
        but = '' if 'Of' in kind else f', but {fault.message}'
        return f'got {type(value).__name__} {value!r:.60}{but}; wanted: {wanted}'


def _kind(fault: ValidationError) -> str:
    return type(fault.kind).__name__


def _most_telling(faults: list[ValidationError]) -> ValidationError:
    """Choose the fault to show: the outermost, inside of alternatives that of the one meant."""

    def rank(fault: ValidationError) -> tuple[int, int]:
        kind = _kind(fault)
        return len(fault.instance_path), (
            _TELLING.index(kind) if kind in _TELLING else len(_TELLING)
        )

    fault = min(faults, key=rank)
    if _kind(fault) != 'AnyOf':
        return fault
    # The alternative meant is the one that fits farthest inwards, or needs the fewest changes.
    best, ties = None, 0
    for branch in fault.kind.context:
        inner = _most_telling(branch)
        depth = len(inner.instance_path) - len(fault.instance_path)
        if depth == 0 and _kind(inner) not in ('AdditionalProperties', 'Required'):
            continue
        changes = sum(len(getattr(f.kind, 'unexpected', ' ')) for f in branch)
        score = (-depth, changes)
        if best is None or score < best[0]:
            best, ties = (score, inner), 1
        elif score == best[0]:
            ties += 1
    return best[1] if ties == 1 else fault
