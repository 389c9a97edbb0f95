"""The language of ShapesWorld: every sentence means exactly one object."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pixelsail_mm.worlds.shapes_world.expressions import (
    POSITION_MARGIN,
    Expression,
    Filter,
    evaluate,
    parse,
    render,
)
from pixelsail_mm.worlds.shapes_world.presets import FULL, MINI
from pixelsail_mm.worlds.shapes_world.sampling import SceneLanguage
from pixelsail_mm.worlds.shapes_world.scene import SceneObject, draw_scene

SIZE = 100
MARGIN = POSITION_MARGIN * SIZE


def make_object(kind='star', colour='red', texture='plain', size='medium', x=50, y=50, side=10):
    """Object with a square visible mask around (x, y)."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = True
    return SceneObject.from_mask(dict(kind=kind, colour=colour, texture=texture, size=size), mask)


def denoted(text, *objects):
    return set(evaluate(parse(text), objects, SIZE))


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_every_sentence_denotes_its_object_only(seed, preset):
    rng = np.random.default_rng(seed)
    scene = draw_scene(preset, rng)
    language = SceneLanguage(scene, preset)
    for index in range(len(scene.objects)):
        for expression in language.training_expressions(index, rng):
            understood = parse(render(expression))
            assert understood == expression
            assert evaluate(understood, scene.objects, scene.size) == {index}
    related = language.related_groups(rng)
    assert all(e.relation and e.target == Filter() for _, e in related)
    for members, expression in language.group_expressions() + related:
        understood = parse(render(expression))
        assert understood == expression
        assert evaluate(understood, scene.objects, scene.size) == members != set()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_groups_name_every_attribute_value_present(seed, preset):
    rng = np.random.default_rng(seed)
    scene = draw_scene(preset, rng)
    texts = {render(e) for _, e in SceneLanguage(scene, preset).group_expressions()}
    for item in scene.objects:
        assert f'every {item.colour} shape' in texts
        assert f'every {item.kind}' in texts


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), preset=st.sampled_from([MINI, FULL]))
def test_evaluation_expressions_follow_the_cycle(seed, preset):
    rng = np.random.default_rng(seed)
    language = SceneLanguage(draw_scene(preset, rng), preset)
    pairs = language.evaluation_expressions(2, rng)
    assume(pairs is not None)
    assert [e.category for _, e in pairs] == list(preset.eval_cycle[2:4])
    assert len({index for index, _ in pairs}) == len(pairs)
    for index, expression in pairs:
        assert language.evaluate(expression) == {index}


def test_attributes_conjoin():
    objects = (
        make_object('star', 'red'),
        make_object('star', 'blue'),
        make_object('circle', 'red', 'striped', 'large'),
    )
    assert denoted('the star', *objects) == {0, 1}
    assert denoted('the red star', *objects) == {0}
    assert denoted('the red shape', *objects) == {0, 2}
    assert denoted('the large striped red circle', *objects) == {2}
    assert denoted('the small red circle', *objects) == set()
    assert denoted('every striped shape', *objects) == {2}
    assert denoted('every star', *objects) == {0, 1}


def test_superlative_needs_a_margin():
    left, near, far = (make_object(x=x) for x in (40, 44, 60))
    assert denoted('the leftmost star', left, far) == {0}
    assert denoted('the left star', left, far) == {0}
    assert denoted('the leftmost star', left, near) == set()
    assert denoted('the rightmost star', left, near, far) == {2}
    assert denoted('the topmost star', make_object(y=20), make_object(y=60)) == {0}
    assert denoted('the bottommost star', make_object(y=20), make_object(y=60)) == {1}


def test_superlative_of_size_needs_area_and_extent():
    assert denoted('the largest star', make_object(side=20), make_object(side=10)) == {0}
    assert denoted('the smallest star', make_object(side=20), make_object(side=10)) == {1}
    assert denoted('the largest star', make_object(side=10), make_object(side=10)) == set()
    # More area, but a shorter extent: debatable.
    thin = np.zeros((SIZE, SIZE), bool)
    thin[50, 20:60] = True
    look = dict(kind='star', colour='red', texture='plain', size='medium')
    assert (
        denoted('the largest star', make_object(side=20), SceneObject.from_mask(look, thin))
        == set()
    )


@pytest.mark.parametrize(
    'relation, position, holds',
    [
        ('left of', (20, 50), True),
        ('left of', (80, 50), False),
        ('right of', (80, 50), True),
        ('above', (50, 20), True),
        ('above', (50, 80), False),
        ('below', (50, 80), True),
    ],
)
def test_relations(relation, position, holds):
    anchor = make_object('circle', 'blue')
    star = make_object(x=position[0], y=position[1])
    assert denoted(f'the star {relation} the blue circle', anchor, star) == (
        {1} if holds else set()
    )


def test_relation_is_void_if_any_candidate_is_too_close_to_call():
    anchor = make_object('circle', 'blue')
    clear, close = make_object(x=20), make_object(x=50 - int(MARGIN) + 2)
    assert denoted('the star left of the circle', anchor, clear) == {1}
    assert denoted('the star left of the circle', anchor, clear, close) == set()


def test_relation_needs_one_anchor_which_is_no_candidate_itself():
    anchor, star = make_object('circle', 'blue'), make_object(x=20)
    assert denoted('the star left of the circle', anchor, anchor, star) == set()
    assert denoted('the shape left of the circle', anchor, star) == {1}


def test_superlatives_and_relations_are_used_only_where_needed():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = draw_scene(FULL, rng)
        language = SceneLanguage(scene, FULL)
        for index in range(len(scene.objects)):
            found = language.unique_expressions(index, rng)
            for expression in found['superlative'] + found['relation']:
                assert len(language.matches(expression.target)) > 1


@pytest.mark.parametrize(
    'text',
    [
        '',
        'a star',
        'the',
        'the red',
        'the red blue star',
        'the star star',
        'the glorious star',
        'the star left of the',
    ],
)
def test_parse_rejects_what_is_not_in_the_language(text):
    with pytest.raises(ValueError, match=repr(text)):
        parse(text)


def test_groups_keep_the_singular():
    assert render(Expression(Filter(kind='cross'), plural=True)) == 'every cross'
    assert render(Expression(Filter(colour='red'), plural=True)) == 'every red shape'
    text = 'every shape left of the red star'
    assert render(parse(text)) == text and parse(text).plural
    assert parse('every small dotted cross').target == Filter('small', 'dotted', None, 'cross')
