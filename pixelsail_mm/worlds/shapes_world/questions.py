"""Questions about ShapesWorld scenes: region descriptions, multiple choice and whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pixelsail_mm.worlds.shapes_world.expressions import Expression, Filter, evaluate, parse
from pixelsail_mm.worlds.shapes_world.presets import Preset
from pixelsail_mm.worlds.shapes_world.scene import Scene, SceneObject

LETTERS = 'ABCD'
MCQ_SUFFIX = 'Answer with one option.'
DESCRIBE_QUESTIONS = (
    'Describe {r}.',
    'What is {r}?',
    'Please describe {r}.',
    'Please give me a short description of {r}.',
)
ATTRIBUTE_WORDS = {'size': 'size', 'texture': 'texture', 'colour': 'colour', 'kind': 'shape'}
MCQ_STEMS = {name: f'What is the {word} of {{r}}?' for name, word in ATTRIBUTE_WORDS.items()}
DESCRIPTION_STEM = 'Which description fits {r}?'
NEIGHBOUR_STEMS = {
    name: f'Which object is {name} {{r}}?' for name in ('left of', 'right of', 'above', 'below')
}
NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six')
COUNT_QUESTION = 'How many {x} are there?'
EXIST_QUESTION = 'Is there {x} in this image?'
SCENE_QUESTIONS = ('Describe this image.', 'What can you see in this image?')
ASK_QUESTION = 'What {a} is {x}?'
# Question and answer pairs that need no image.
TEXT_ONLY = (
    ('How many sides does a square have?', 'four'),
    ('How many sides does a triangle have?', 'three'),
    ('How many points does a star have?', 'five'),
    ('How many corners does a circle have?', 'zero'),
    ('Is a ring round?', 'yes'),
    ('Is a square round?', 'no'),
    ('Is red a colour?', 'yes'),
    ('Is a star a colour?', 'no'),
    ('Name two colours.', 'red and blue'),
    ('Name two shapes.', 'circle and square'),
    *(
        (f'What is {NUMBERS[a]} plus {NUMBERS[b]}?', NUMBERS[a + b])
        for a in range(1, 4)
        for b in range(1, 4)
    ),
)


def article(phrase: str) -> str:
    """``phrase`` with its indefinite article."""
    return f'{"an" if phrase[0] in "aeio" else "a"} {phrase}'


def described(item: SceneObject, preset: Preset) -> Filter:
    """All attributes that vary in a preset."""
    varying = dict(
        size=len(preset.radii) > 1, texture=len(preset.textures) > 1, colour=True, kind=True
    )
    return Filter(**{name: getattr(item, name) for name, used in varying.items() if used})


def region_description(item: SceneObject, preset: Preset) -> str:
    """Description of one object, e.g. ``'a large striped red star'``."""
    return article(described(item, preset).words())


def attribute_question(
    item: SceneObject, region: str, preset: Preset, rng: np.random.Generator
) -> tuple[str, str]:
    """Question and answer about one attribute that varies in a preset."""
    name = str(rng.choice(described(item, preset).named))
    return MCQ_STEMS[name].format(r=region), it_is(getattr(item, name))


def it_is(what: str) -> str:
    """Sentence that answers a question about a region.

    With it a word of an answer has a blank in front, as in the questions: one token for both.
    """
    return f'It is {what}.'


def format_choices(stem: str, choices: Sequence[str]) -> str:
    """Multiple-choice question in the form the evaluation asks it."""
    options = ' '.join(f'{letter}. {choice}' for letter, choice in zip(LETTERS, choices))
    return f'{stem} {options} {MCQ_SUFFIX}'


def multiple_choice(
    scene: Scene, index: int, region: str, preset: Preset, rng: np.random.Generator
) -> dict | None:
    """One four-option question about an object; the right letter is uniform.

    Args:
        scene: The scene.
        index: Object asked about.
        region: How the text names the object, e.g. ``'<region1>'``.
        preset: Vocabulary.
        rng: Source of randomness.

    Returns:
        dict with ``question``, ``choices`` (4 strings), ``answer`` (a letter), ``reply`` (what the
        model is to say: the option's text, which a small model learns in minutes; to look up its
        letter it needs hours) and ``about``; None if the kind of question drawn cannot be asked of
        this object.
    """
    about = str(
        rng.choice(
            ['colour', 'kind', 'texture', 'description', 'neighbour'], p=[0.3, 0.3, 0.15, 0.2, 0.05]
        )
    )
    if about == 'neighbour':
        found = _neighbour_options(scene, index, preset, rng)
    elif about == 'description':
        found = _description_options(scene.objects[index], preset, rng)
    else:
        found = _attribute_options(scene.objects[index], about, preset, rng)
    if found is None:
        return None
    stem, right, wrong = found
    position = int(rng.integers(4))
    choices = [wrong[int(i)] for i in rng.permutation(3)]
    choices.insert(position, right)
    return dict(
        question=format_choices(stem.format(r=region), choices),
        choices=choices,
        answer=LETTERS[position],
        reply=it_is(right),
        about=about,
    )


def _attribute_options(item: SceneObject, about: str, preset: Preset, rng: np.random.Generator):
    values = dict(colour=preset.colours, kind=preset.kinds, texture=preset.textures)[about]
    right = getattr(item, about)
    wrong = [value for value in values if value != right]
    if len(wrong) < 3:
        return None
    return MCQ_STEMS[about], right, [str(v) for v in rng.choice(wrong, 3, replace=False)]


def _description_options(item: SceneObject, preset: Preset, rng: np.random.Generator):
    right = described(item, preset)
    values = dict(
        size=tuple(preset.radii), texture=preset.textures, colour=preset.colours, kind=preset.kinds
    )
    variants = {
        replace(right, **{name: value})
        for name in right.named
        for value in values[name]
        if value != getattr(right, name)
    }
    ordered = sorted(variants, key=Filter.words)
    names = rng.permutation(len(right.named))
    wrong: list[Filter] = []
    for i in [*names, *names, *names]:
        name = right.named[i]
        options = [
            v for v in ordered if getattr(v, name) != getattr(right, name) and v not in wrong
        ]
        if options and len(wrong) < 3:
            wrong.append(options[int(rng.integers(len(options)))])
    return (DESCRIPTION_STEM, article(right.words()), [article(w.words()) for w in wrong])


def _neighbour_options(scene: Scene, index: int, preset: Preset, rng: np.random.Generator):
    anchor = Filter(
        **{
            name: getattr(scene.objects[index], name)
            for name in ('size', 'texture', 'colour', 'kind')
        }
    )
    if len(evaluate(Expression(anchor), scene.objects, scene.size)) != 1:
        return None
    for i in rng.permutation(len(NEIGHBOUR_STEMS)):
        name = tuple(NEIGHBOUR_STEMS)[i]
        holding = evaluate(
            Expression(Filter(), relation=name, anchor=anchor), scene.objects, scene.size
        )
        if len(holding) != 1:
            continue
        right = described(scene.objects[next(iter(holding))], preset)
        wrong = {
            described(item, preset)
            for j, item in enumerate(scene.objects)
            if j not in holding and j != index
        } - {right}
        if len(wrong) >= 3:
            options = sorted(article(w.words()) for w in wrong)
            picked = [str(v) for v in rng.choice(options, 3, replace=False)]
            return NEIGHBOUR_STEMS[name], article(right.words()), picked
    return None


def scene_questions(
    scene: Scene,
    groups: Sequence[tuple[frozenset[int], Expression]],
    expressions: Sequence[str],
    preset: Preset,
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """Questions about the whole image: counting, existence, an attribute, a description.

    Args:
        scene: The scene.
        groups: Group expressions with their members, for counting.
        expressions: Unique expressions of the scene, to ask attributes of the objects they name.
        preset: Vocabulary.
        rng: Source of randomness.

    Returns:
        (question, answer) pairs in random order.
    """
    members, group = groups[int(rng.integers(len(groups)))]
    turns = [(COUNT_QUESTION.format(x=group.target.words(plural=True)), NUMBERS[len(members)])]
    turns.append(_existence(scene, preset, rng))
    asked = _attribute_question(scene, expressions, preset, rng)
    if asked is not None:
        turns.append(asked)
    order = np.argsort([item.centroid[0] for item in scene.objects])
    listing = ', '.join(region_description(scene.objects[i], preset) for i in order)
    turns.append((SCENE_QUESTIONS[int(rng.integers(2))], f'There is {listing}.'))
    return [turns[i] for i in rng.permutation(len(turns))]


def _existence(scene: Scene, preset: Preset, rng: np.random.Generator) -> tuple[str, str]:
    pairs = {(item.colour, item.kind) for item in scene.objects}
    absent = [(c, k) for c in preset.colours for k in preset.kinds if (c, k) not in pairs]
    pool = sorted(pairs) if rng.random() < 0.5 else absent
    colour, kind = pool[int(rng.integers(len(pool)))]
    question = EXIST_QUESTION.format(x=article(f'{colour} {kind}'))
    return question, 'yes' if (colour, kind) in pairs else 'no'


def _attribute_question(
    scene: Scene, expressions: Sequence[str], preset: Preset, rng: np.random.Generator
) -> tuple[str, str] | None:
    for i in rng.permutation(len(expressions)):
        expression = parse(expressions[i])
        hidden = [name for name in ('colour', 'kind') if getattr(expression.target, name) is None]
        if hidden:
            index = next(iter(evaluate(expression, scene.objects, scene.size)))
            name = hidden[int(rng.integers(len(hidden)))]
            return (
                ASK_QUESTION.format(a=ATTRIBUTE_WORDS[name], x=expressions[i]),
                getattr(scene.objects[index], name),
            )
    return None
