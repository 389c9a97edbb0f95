"""Choose expressions for the objects of a scene."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np

from pixelsail_mm.worlds.shapes_world.expressions import RELATIONS, Expression, Filter, evaluate
from pixelsail_mm.worlds.shapes_world.presets import Preset
from pixelsail_mm.worlds.shapes_world.scene import ATTRIBUTES, Scene

CATEGORIES = ('attribute', 'relation', 'superlative')
_RELATION_TRIES = 10
_MAX_GROUP_PAIRS = 4
_MAX_GROUP_RELATIONS = 4


@lru_cache(maxsize=8192)
def _conjunctions(look: tuple[str, ...], spoken: tuple[str, ...]) -> tuple[Filter, ...]:
    values = dict(zip(ATTRIBUTES, look))
    return tuple(
        Filter(**{name: values[name] for name in names})
        for count in range(len(spoken) + 1)
        for names in combinations(spoken, count)
    )


class SceneLanguage:
    """The expressions that one scene allows.

    Args:
        scene: The scene.
        preset: Spoken attributes, superlatives and shares.
    """

    def __init__(self, scene: Scene, preset: Preset) -> None:
        self.scene = scene
        self.preset = preset
        self._matches: dict[Filter, frozenset[int]] = {}
        self._minimal: dict[int, list[Filter]] = {}

    def evaluate(self, expression: Expression) -> frozenset[int]:
        """Denotation of an expression, see :func:`.expressions.evaluate`."""
        return evaluate(expression, self.scene.objects, self.scene.size, self.matches)

    def matches(self, target: Filter) -> frozenset[int]:
        """Objects with all attributes of ``target``, remembered."""
        found = self._matches.get(target)
        if found is None:
            found = evaluate(Expression(target), self.scene.objects, self.scene.size)
            self._matches[target] = found
        return found

    def filters(self, index: int) -> tuple[Filter, ...]:
        """Every conjunction of spoken attributes of an object, shortest first."""
        item = self.scene.objects[index]
        look = tuple(getattr(item, name) for name in ATTRIBUTES)
        return _conjunctions(look, self.preset.spoken)

    def minimal_filters(self, index: int) -> list[Filter]:
        """Unique conjunctions of an object of which no smaller part is unique."""
        if index in self._minimal:
            return self._minimal[index]
        unique = self._minimal.setdefault(index, [])
        for candidate in self.filters(index):
            if len(self.matches(candidate)) == 1 and not any(
                set(candidate.named).issuperset(other.named) for other in unique
            ):
                unique.append(candidate)
        return unique

    def unique_expressions(
        self, index: int, rng: np.random.Generator
    ) -> dict[str, list[Expression]]:
        """Expressions that denote exactly object ``index``, by category.

        Attribute expressions are complete, minimal ones as well as over-specified ones.
        Superlatives and relations are only kept where they are needed, that is where the
        attributes alone match several objects. Relations are drawn at random, there are many.

        Args:
            index: The object meant.
            rng: Source of the random relations.

        Returns:
            Category to expressions; lists may be empty.
        """
        filters = self.filters(index)
        shared = [f for f in filters if len(self.matches(f)) > 1]
        superlatives = (
            Expression(target, superlative=word)
            for target in shared
            for word in self.preset.superlatives
        )
        return dict(
            attribute=[Expression(f) for f in filters if f.named and len(self.matches(f)) == 1],
            superlative=[e for e in superlatives if self.evaluate(e) == {index}],
            relation=self._relations(index, shared, rng),
        )

    def _relations(
        self, index: int, shared: list[Filter], rng: np.random.Generator
    ) -> list[Expression]:
        others = [i for i in range(len(self.scene.objects)) if i != index]
        anchors = {i: self.minimal_filters(i) for i in others}
        found: list[Expression] = []
        for _ in range(_RELATION_TRIES if shared and others else 0):
            target = shared[rng.integers(len(shared))]
            other = others[rng.integers(len(others))]
            if not anchors[other] or len(self.matches(target) - {other}) < 2:
                continue
            anchor = anchors[other][rng.integers(len(anchors[other]))]
            for name in RELATIONS:
                expression = Expression(target, relation=name, anchor=anchor)
                if expression not in found and self.evaluate(expression) == {index}:
                    found.append(expression)
        return found

    def training_expressions(self, index: int, rng: np.random.Generator) -> list[Expression]:
        """Up to ``preset.sentences_per_object`` distinct expressions for one object."""
        found = self.unique_expressions(index, rng)
        shares = dict(zip(CATEGORIES, self.preset.train_shares))
        chosen: list[Expression] = []
        for _ in range(self.preset.sentences_per_object):
            available = [name for name in CATEGORIES if found[name]]
            if not available:
                break
            weights = np.array([shares[name] for name in available])
            name = available[rng.choice(len(available), p=weights / weights.sum())]
            chosen.append(found[name].pop(int(rng.integers(len(found[name])))))
        return chosen

    def evaluation_expressions(
        self, cycle_start: int, rng: np.random.Generator
    ) -> list[tuple[int, Expression]] | None:
        """Expressions of one evaluation image, with the categories of the preset's cycle.

        Args:
            cycle_start: Position in ``preset.eval_cycle`` of the image's first reference.
            rng: Source of randomness.

        Returns:
            (object index, expression) pairs of different objects, or None if the scene cannot
            serve the prescribed categories; another scene is to be drawn then.
        """
        free = [int(i) for i in rng.permutation(len(self.scene.objects))]
        candidates = {i: self.unique_expressions(i, rng) for i in free}
        chosen = []
        for slot in range(self.preset.eval_refs_per_image):
            cycle = self.preset.eval_cycle
            category = cycle[(cycle_start + slot) % len(cycle)]
            able = [i for i in free if candidates[i][category]]
            if not able:
                return None
            free.remove(able[0])
            options = candidates[able[0]][category]
            if category == 'attribute':
                fewest = min(len(option.target.named) for option in options)
                options = [o for o in options if len(o.target.named) <= fewest + 1]
            chosen.append((able[0], options[int(rng.integers(len(options)))]))
        return chosen

    def group_expressions(self) -> list[tuple[frozenset[int], Expression]]:
        """Group expressions with their members.

        Single attributes ("every red shape") open the way to conjunctions for small models, so
        every one that is present is there; pairs with several members follow up to a limit.
        """
        singles: dict[Filter, frozenset[int]] = {}
        pairs: dict[Filter, frozenset[int]] = {}
        for index in range(len(self.scene.objects)):
            for candidate in self.filters(index):
                members = self.matches(candidate)
                if len(candidate.named) == 1:
                    singles[candidate] = members
                elif len(candidate.named) == 2 and len(members) > 1:
                    pairs[candidate] = members
        kept = [*singles.items(), *list(pairs.items())[:_MAX_GROUP_PAIRS]]
        return [(members, Expression(target, plural=True)) for target, members in kept]

    def related_groups(self, rng: np.random.Generator) -> list[tuple[frozenset[int], Expression]]:
        """Everything beside an object ("every shape left of the red star"), with its members.

        A relation alone is to relational expressions what a single attribute is to conjunctions.

        Args:
            rng: Chooses the anchors and relations, up to a limit.
        """
        named = [
            filters[0]
            for filters in map(self.minimal_filters, range(len(self.scene.objects)))
            if filters
        ]
        pairs = [(anchor, name) for anchor in named for name in RELATIONS]
        found = []
        for i in rng.permutation(len(pairs)):
            anchor, name = pairs[i]
            expression = Expression(Filter(), relation=name, anchor=anchor, plural=True)
            members = self.evaluate(expression)
            if members and len(found) < _MAX_GROUP_RELATIONS:
                found.append((members, expression))
        return found
