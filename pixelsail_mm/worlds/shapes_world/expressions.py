"""A small language of referring expressions with a strict evaluator.

An expression is a structure first: :func:`render` turns it into text, :func:`parse` turns text
back, and :func:`evaluate` gives the objects it denotes. Evaluation is strict: whenever a comparison
is closer than its margin, the expression denotes nothing rather than something debatable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from pixelsail_mm.worlds.shapes_world.presets import COLOURS, KINDS, SIZES, TEXTURES
from pixelsail_mm.worlds.shapes_world.scene import ATTRIBUTES, SceneObject

# Superlative word -> (axis of the centroid or None for the area, sign); the winner has the largest
# signed value.
SUPERLATIVES = {
    'leftmost': (0, -1),
    'rightmost': (0, 1),
    'topmost': (1, -1),
    'bottommost': (1, 1),
    'left': (0, -1),
    'right': (0, 1),
    'top': (1, -1),
    'bottom': (1, 1),
    'largest': (None, 1),
    'smallest': (None, -1),
}
# Relation -> (axis, sign); it holds if sign * (target - anchor) exceeds the margin.
RELATIONS = {'left of': (0, -1), 'right of': (0, 1), 'above': (1, -1), 'below': (1, 1)}
POSITION_MARGIN = 0.07  # of the image side
AREA_RATIO = 1.35
EXTENT_RATIO = 1.10
_PLURALS = {kind: kind + ('es' if kind.endswith('s') else 's') for kind in (*KINDS, 'shape')}
_VALUES = dict(zip(ATTRIBUTES, (SIZES, TEXTURES, tuple(COLOURS), KINDS)))
_ATTRIBUTE_OF = {value: name for name, values in _VALUES.items() for value in values}


@dataclass(frozen=True)
class Filter:
    """Conjunction of attributes; None leaves an attribute open."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    kind: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Tell whether ``item`` has every named attribute."""
        return (
            self.kind in (None, item.kind)
            and self.colour in (None, item.colour)
            and self.texture in (None, item.texture)
            and self.size in (None, item.size)
        )

    @cached_property
    def named(self) -> tuple[str, ...]:
        """Names of the attributes that are given."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name) is not None)

    def words(self, plural: bool = False) -> str:
        """Noun phrase without article, e.g. ``'large striped red star'``."""
        noun = self.kind or 'shape'
        adjectives = [getattr(self, name) for name in ATTRIBUTES[:-1] if getattr(self, name)]
        return ' '.join([*adjectives, _PLURALS[noun] if plural else noun])


@dataclass(frozen=True)
class Expression:
    """A referring expression.

    Attributes:
        target: Attributes of the object(s) meant.
        superlative: Word of :data:`SUPERLATIVES`, or None.
        relation: Key of :data:`RELATIONS`, or None.
        anchor: Attributes of the one object the relation refers to.
        plural: Group expression, which denotes every match.
    """

    target: Filter
    superlative: str | None = None
    relation: str | None = None
    anchor: Filter | None = None
    plural: bool = False

    @property
    def category(self) -> str:
        """``'group'``, ``'superlative'``, ``'relation'`` or ``'attribute'``."""
        if self.plural:
            return 'group'
        if self.superlative:
            return 'superlative'
        return 'relation' if self.relation else 'attribute'


def render(expression: Expression) -> str:
    """English text of an expression, lower case and without final punctuation."""
    # Groups are in the singular, so that they and single objects teach the same words.
    text = 'every ' if expression.plural else 'the '
    if expression.superlative:
        text += f'{expression.superlative} '
    text += expression.target.words()
    if expression.relation:
        text += f' {expression.relation} the {expression.anchor.words()}'
    return text


def parse(text: str) -> Expression:
    """Inverse of :func:`render`.

    Raises:
        ValueError: ``text`` is not in the language.
    """
    article, _, head = text.partition(' ')
    if article not in ('the', 'every'):
        raise ValueError(f'{text!r}: an expression starts with "the" or "every"')
    relation, tail = None, ''
    for name in RELATIONS:
        before, found, after = head.partition(f' {name} the ')
        if found:
            head, relation, tail = before, name, after
            break
    superlative, _, rest = head.partition(' ')
    if superlative not in SUPERLATIVES:
        superlative, rest = None, head
    anchor = _parse_filter(tail.split(), text) if relation else None
    return Expression(
        _parse_filter(rest.split(), text), superlative, relation, anchor, plural=article == 'every'
    )


def _parse_filter(words: Sequence[str], text: str) -> Filter:
    values = {}
    for word in words:
        if word == 'shape':
            continue
        if word not in _ATTRIBUTE_OF or _ATTRIBUTE_OF[word] in values:
            raise ValueError(f'{text!r}: unexpected word {word!r}')
        values[_ATTRIBUTE_OF[word]] = word
    if not words or words[-1] not in _PLURALS:
        raise ValueError(f'{text!r}: a noun is missing')
    return Filter(**values)


def evaluate(
    expression: Expression,
    objects: Sequence[SceneObject],
    image_size: int,
    matches: Callable[[Filter], Collection[int]] | None = None,
) -> frozenset[int]:
    """Indices of the objects an expression denotes.

    Args:
        expression: What is said.
        objects: Visible objects of the scene.
        image_size: Side of the image in pixels, for the position margin.
        matches: Gives the indices of the objects with all attributes of a filter; lets a caller
            that evaluates many expressions remember them. None looks at the objects.

    Returns:
        The denotation; empty if nothing matches *or* if a comparison is within its margin.
    """
    if matches is None:

        def matches(target: Filter) -> list[int]:
            return [i for i, item in enumerate(objects) if target.matches(item)]

    found = matches(expression.target)
    if expression.superlative:
        return _winner(expression.superlative, found, objects, image_size)
    if expression.relation:
        anchors = matches(expression.anchor)
        if len(anchors) != 1:
            return frozenset()
        return _related(expression.relation, found, next(iter(anchors)), objects, image_size)
    return frozenset(found)


def _winner(
    word: str, matches: Collection[int], objects: Sequence[SceneObject], image_size: int
) -> frozenset[int]:
    axis, sign = SUPERLATIVES[word]
    for i in matches:
        if all(_exceeds(objects[i], objects[j], axis, sign, image_size) for j in matches if j != i):
            return frozenset([i])
    return frozenset()


def _exceeds(
    item: SceneObject, other: SceneObject, axis: int | None, sign: int, image_size: int
) -> bool:
    if axis is None:
        large, little = (item, other) if sign > 0 else (other, item)
        return (
            large.area >= AREA_RATIO * little.area and large.extent >= EXTENT_RATIO * little.extent
        )
    difference = sign * (item.centroid[axis] - other.centroid[axis])
    return difference >= POSITION_MARGIN * image_size


def _related(
    relation: str,
    matches: Collection[int],
    anchor: int,
    objects: Sequence[SceneObject],
    image_size: int,
) -> frozenset[int]:
    axis, sign = RELATIONS[relation]
    origin, margin = objects[anchor].centroid[axis], POSITION_MARGIN * image_size
    chosen = []
    for i in matches:
        if i == anchor:
            continue
        difference = sign * (objects[i].centroid[axis] - origin)
        if abs(difference) < margin:
            return frozenset()
        if difference > 0:
            chosen.append(i)
    return frozenset(chosen)
