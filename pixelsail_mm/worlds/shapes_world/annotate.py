"""All annotations of one ShapesWorld image, as plain containers."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from pixelsail_mm.datasets.files.masks import mask_to_rle
from pixelsail_mm.worlds.shapes_world.expressions import Expression, render
from pixelsail_mm.worlds.shapes_world.presets import SPLITS, Preset
from pixelsail_mm.worlds.shapes_world.questions import (
    DESCRIBE_QUESTIONS,
    attribute_question,
    multiple_choice,
    region_description,
    scene_questions,
)
from pixelsail_mm.worlds.shapes_world.sampling import SceneLanguage
from pixelsail_mm.worlds.shapes_world.scene import ATTRIBUTES, Scene, draw_scene
from pixelsail_mm.worlds.shapes_world.segmentation import mask_bbox, mask_to_polygons

_SCENE_TRIES = 200
# Multiple-choice questions per object in training.
_CHOICES = 2


def annotate_image(preset: Preset, seed: int, split: str, index: int) -> tuple[np.ndarray, dict]:
    """Draw one image and say everything about it.

    Args:
        preset: Kind of ShapesWorld.
        seed: Seed of the data set.
        split: ``'train'``, ``'val'`` or ``'test'``; each has its own stream of random numbers.
        index: Number of the image in its split. The result depends on nothing but these arguments.

    Returns:
        RGB uint8 (H, W, 3) image and a dict with ``objects``, ``refs``, ``groups``, ``regions``,
        ``mcqs``, ``captions``, ``questions`` and ``sha256``.

    Raises:
        RuntimeError: The preset cannot provide the expressions of its ``eval_cycle``.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    if split == 'train':
        scene = draw_scene(preset, rng)
        language = SceneLanguage(scene, preset)
        refs = [
            [(i, e) for e in language.training_expressions(i, rng)]
            for i in range(len(scene.objects))
        ]
    else:
        scene, language, pairs = _evaluation_scene(preset, index, rng)
        refs = [[pair] for pair in pairs]
    sentences = [render(e) for ref in refs for _, e in ref]
    groups = []
    if split == 'train':
        groups = language.group_expressions() + language.related_groups(rng)
    record = dict(
        objects=[_object(item, preset.segmentation == 'polygon') for item in scene.objects],
        refs=[(ref[0][0], [_sentence(e) for _, e in ref]) for ref in refs if ref],
        groups=_merge_groups(scene, groups),
        regions=_regions(scene, preset, rng) if split == 'train' else [],
        mcqs=_choices(scene, preset, split, rng),
        captions=_captions(scene, preset) if split != 'train' else [],
        questions=scene_questions(scene, language.group_expressions(), sentences, preset, rng),
        sha256=hashlib.sha256(scene.image.tobytes()).hexdigest(),
    )
    return scene.image, record


def encode_image(image: np.ndarray, image_format: str) -> bytes:
    """Encode an RGB uint8 (H, W, 3) image as ``'png'`` or as high-quality ``'jpg'``."""
    options = (
        []
        if image_format == 'png'
        else [
            cv2.IMWRITE_JPEG_QUALITY,
            95,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
    )
    return cv2.imencode(f'.{image_format}', image[..., ::-1], options)[1].tobytes()


def _evaluation_scene(preset: Preset, index: int, rng: np.random.Generator):
    for _ in range(_SCENE_TRIES):
        scene = draw_scene(preset, rng)
        language = SceneLanguage(scene, preset)
        pairs = language.evaluation_expressions(index * preset.eval_refs_per_image, rng)
        if pairs is not None:
            return scene, language, pairs
    raise RuntimeError(
        f'preset {preset.name!r}: no scene in {_SCENE_TRIES} offers the expressions '
        f'that eval_cycle prescribes; change num_objects or eval_cycle'
    )


def _sentence(expression: Expression) -> dict:
    return dict(text=render(expression), kind=expression.category)


def _object(item, polygons: bool) -> dict:
    segmentation = mask_to_polygons(item.mask) if polygons else None
    return dict(
        attributes={name: getattr(item, name) for name in ATTRIBUTES},
        segmentation=segmentation or mask_to_rle(item.mask),
        rle=mask_to_rle(item.mask),
        bbox=mask_bbox(item.mask),
        area=item.area,
    )


def _merge_groups(scene: Scene, groups: list[tuple[frozenset[int], Expression]]) -> list[dict]:
    """One entry per distinct set of objects, with every expression that denotes it."""
    merged: dict[frozenset[int], list[dict]] = {}
    for members, expression in groups:
        merged.setdefault(members, []).append(_sentence(expression))
    entries = []
    for members, sentences in merged.items():
        mask = np.logical_or.reduce([scene.objects[i].mask for i in sorted(members)])
        entries.append(
            dict(
                sentences=sentences,
                segmentation=mask_to_rle(mask),
                bbox=mask_bbox(mask),
                area=int(mask.sum()),
                members=sorted(members),
            )
        )
    return entries


def _regions(scene: Scene, preset: Preset, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Training turns about regions in random order.

    Per object a description, an attribute in a word, and choices. The first two show the words
    that belong to a region, which the choices (rewarded with a letter only) presuppose.
    """
    turns = []
    for i, item in enumerate(scene.objects):
        region = f'<region{i + 1}>'
        question = DESCRIBE_QUESTIONS[int(rng.integers(len(DESCRIBE_QUESTIONS)))]
        turns.append((question.format(r=region), region_description(item, preset)))
        turns.append(attribute_question(item, region, preset, rng))
        choices = (multiple_choice(scene, i, region, preset, rng) for _ in range(_CHOICES))
        turns += [(choice['question'], choice['reply']) for choice in choices if choice]
    return [turns[i] for i in rng.permutation(len(turns))]


def _choices(scene: Scene, preset: Preset, split: str, rng: np.random.Generator) -> list[dict]:
    """Evaluation questions, each about another object while objects last."""
    if split == 'train':
        return []
    choices = []
    order = rng.permutation(len(scene.objects))
    for slot in range(preset.eval_mcqs_per_image):
        index = int(order[slot % len(order)])
        choice = None
        while choice is None:
            choice = multiple_choice(scene, index, f'<region{index + 1}>', preset, rng)
        choices.append(choice)
    return choices


def _captions(scene: Scene, preset: Preset) -> list[tuple[str, str]]:
    return [
        (DESCRIBE_QUESTIONS[-1].format(r=f'<region{i + 1}>'), region_description(item, preset))
        for i, item in enumerate(scene.objects)
    ]
