"""Turn a user's arguments into records, in the form that dataset readers give."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixelsail_mm.datasets.files.pictures import (
    DECODING_ERRORS,
    MAX_PIXELS,
    ROTATE,
    check_pixels,
    to_rgb,
)
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.tokenization import NUM_PROMPTS, PROMPT_TOKENS

ImageInput = str | os.PathLike | Image.Image | np.ndarray | None

# A prompt's name in any spelling that a reader would take for one: <prompt0>, <Prompt 0>, ...
_NAME = re.compile(r'<\s*prompt[\s_-]*(\d+)\s*>', re.IGNORECASE)


def make_record(
    name: str,
    image: ImageInput,
    text: str,
    prompts: Any = None,
    history: Sequence | None = None,
    answer_prefix: str | None = None,
    exif: str = ROTATE,
    max_pixels: float = MAX_PIXELS,
) -> dict:
    """Build one canonical record.

    Args:
        name: Name of the input in error messages, used as ``sample_id``.
        image: Path, PIL image, uint8 array (RGB ``(H, W, 3)``, RGBA or grey ``(H, W)``), or
            ``None``. Files are shown as a viewer shows them: turned as their EXIF data say (unless
            ``exif`` says otherwise), transparency on white, 16-bit and float scaled, see
            :func:`~pixelsail_mm.datasets.files.pictures.to_rgb`. PIL images and arrays keep their
            size and are not turned. Prompts and masks are in pixels of what is shown.
        text: The question.
        prompts: See :func:`make_prompts`.
        history: See :func:`make_history`.
        answer_prefix: Text the answer must begin with.
        exif: ``'ignore'`` keeps the stored pixels of files, see
            :class:`~pixelsail_mm.datasets.transforms.LoadImage`.
        max_pixels: Pictures in memory with more are refused, PIL images before they are decoded;
            of files ``LoadImage`` does so.

    Returns:
        The record. ``meta['warnings']`` (list of str) says what will not have the effect that the
        user may expect.

    Raises:
        BadSampleError: An input is unusable, or a question or ``answer_prefix`` names a visual
            prompt that is not given or spells its name differently; names it.
    """
    if not isinstance(text, str) or not text.strip():
        raise BadSampleError(name, 'text', f'{text!r} is empty; ask a question')
    record = make_image_record(name, image, prompts, exif, max_pixels)
    record['conversation'] = [*make_history(name, history), dict(human=text, gpt='')]
    if not isinstance(answer_prefix, str | None):
        raise BadSampleError(
            name, 'answer_prefix', f'must be a text, got {type(answer_prefix).__name__}'
        )
    if answer_prefix:
        record['answer_prefix'] = answer_prefix
    _check_names(name, record)
    return record


def _check_names(name: str, record: dict) -> None:
    """Compare the prompts that the texts name with those that are given.

    Answers of the history may name what is not given: the model wrote them, and may have erred.
    """
    turns = record['conversation']
    # Other ids are refused with the prompts, where they are drawn.
    given = [p['id'] for p in record['prompts'] if isinstance(p['id'], (int, np.integer))]
    asked = {f'history[{i}]': turn['human'] for i, turn in enumerate(turns[:-1])} | dict(
        text=turns[-1]['human'], answer_prefix=record.get('answer_prefix', '')
    )
    for key, text in asked.items():
        for match in _NAME.finditer(text):
            _check_name(name, key, match, given)
    texts = [side for turn in turns for side in turn.values()] + [record.get('answer_prefix', '')]
    unnamed = [f'<Prompt{k}>' for k in given if not any(f'<Prompt{k}>' in text for text in texts)]
    if unnamed:
        record['meta']['warnings'].append(
            f'no text names {", ".join(unnamed)}: the region is marked, but the question does not '
            'ask about it'
        )


def _check_name(name: str, key: str, match: re.Match, given: Sequence[int]) -> None:
    """Check one prompt's name in a question or in the beginning of an answer."""
    number = int(match.group(1))
    if number >= NUM_PROMPTS:
        mistake = (
            f'{match.group()}: prompt id {number} is out of range '
            f'0..{NUM_PROMPTS - 1}; renumber the prompts'
        )
    elif match.group() not in PROMPT_TOKENS:
        mistake = (
            f'{match.group()} is not the name of a visual prompt but '
            f'plain text to the model; write <Prompt{number}>'
        )
    elif number not in given:
        said = f'the prompts given have the ids {given}' if given else 'no prompt is given'
        again = ', again with each question' if key.startswith('history') else ''
        mistake = (
            f'it names <Prompt{number}>, but {said}; pass it in '
            f'`prompts`{again} (ids count from 0 unless given as dict(id=K, ...))'
        )
    else:
        return
    raise BadSampleError(name, key, mistake)


def make_image_record(
    name: str,
    image: ImageInput,
    prompts: Any = None,
    exif: str = ROTATE,
    max_pixels: float = MAX_PIXELS,
) -> dict:
    """Build a record without a conversation; arguments as for :func:`make_record`.

    Raises:
        BadSampleError: An input is unusable; names it.
    """
    said: list[str] = []  # also by LoadImage, as notes
    record = dict(
        img_path=None,
        masks=[],
        prompts=make_prompts(name, prompts),
        notes=said,
        meta=dict(sample_id=name, dataset='inference', task='inference', warnings=said),
    )
    return record | _image(name, image, said, exif, max_pixels)


def make_columns(several: bool, leading: Sequence[str], **inputs: Any) -> list[list]:
    """Turn arguments for one or several samples into lists of equal length.

    Args:
        several: Whether the arguments are for several samples.
        leading: Arguments that may be a list of samples or one value for all of them; the first
            that is a list says how many there are.
        **inputs: The arguments. Those not in ``leading`` are None or lists.

    Returns:
        One list per argument, in their order.

    Raises:
        ValueError: A list has another length.
    """
    if not several:
        return [[value] for value in inputs.values()]
    size = next(len(inputs[key]) for key in leading if isinstance(inputs[key], (list, tuple)))
    columns = []
    for key, value in inputs.items():
        if value is None or (key in leading and not isinstance(value, (list, tuple))):
            value = [value] * size
        if not isinstance(value, (list, tuple)) or len(value) != size:
            count = len(value) if isinstance(value, (list, tuple)) else 'one value'
            raise ValueError(f'{key}: {size} samples need a list of {size} entries, got {count}')
        columns.append(list(value))
    return columns


def _image(name: str, image: ImageInput, said: list[str], exif: str, max_pixels: float) -> dict:
    """Record keys of the image; what is read otherwise than it is stored is added to ``said``."""
    if image is None:
        return {}
    if isinstance(image, (str, os.PathLike)):
        if not os.path.isfile(image):  # False, too, for a name that no file can have
            raise BadSampleError(str(image), 'image', 'no such file; check the path')
        return dict(img_path=str(image), exif=exif)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        if image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4):
            image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        check_pixels(image, max_pixels, name, 'image')
        return dict(img=_pixels(name, image, said))
    got = f'{image.dtype} {image.shape}' if hasattr(image, 'dtype') else type(image).__name__
    raise BadSampleError(
        name,
        'image',
        f'expected a path, a PIL image or a uint8 array of shape (H, W, 3) in RGB, got {got}',
    )


def _pixels(name: str, image: Image.Image, said: list[str]) -> np.ndarray:
    """RGB of a picture in memory; masks come back at its size, so it is not turned."""
    try:
        pixels, notes = to_rgb(image)
    except DECODING_ERRORS as error:
        raise BadSampleError(
            name,
            'image',
            f'the PIL image of mode {image.mode} cannot be read '
            f'({error}); pass another copy, or its pixels as a uint8 array of '
            'shape (H, W, 3) in RGB',
        ) from error
    said.extend(notes)
    return pixels


def make_history(name: str, history: Sequence | None) -> list[dict[str, str]]:
    """Convert earlier turns to the form of a record.

    Args:
        name: Name of the input in error messages.
        history: Earlier turns, oldest first: ``(question, answer)`` pairs, or dicts with ``human``
            and ``gpt``. What a call returns as ``history`` can be passed on.
    """
    turns = []
    if not isinstance(history, Iterable | None):
        raise BadSampleError(
            name, 'history', f'expected a list of turns, got {type(history).__name__}'
        )
    for i, turn in enumerate(history or ()):
        match turn:
            case {'human': str(question), 'gpt': str(answer)} | (str(question), str(answer)):
                turns.append(dict(human=question, gpt=answer))
            case _:
                raise BadSampleError(
                    name,
                    f'history[{i}]',
                    f'expected a (question, answer) pair or dict(human=..., gpt=...), got {turn!r}',
                )
    return turns


def make_prompts(name: str, prompts: Any) -> list[dict]:
    """Convert visual prompts to the form of a record.

    Args:
        name: Name of the input in error messages.
        prompts: ``None``; or a list whose i-th entry is a ``dict(id=K, mask= | box= | point= |
            scribble=)`` (``id`` defaults to i; a scribble ``[[x, y], ...]`` may have a ``width``),
            a mask ``(H, W)`` (array, tensor or PIL image), a box ``[x1, y1, x2, y2]`` or a point
            ``[x, y]``, in pixels of the original image; or an array of masks ``(n, H, W)``, of
            boxes ``(n, 4)`` or of points ``(n, 2)``. What the kinds cover:
            :class:`~pixelsail_mm.datasets.transforms.LoadVisualPrompts`.
    """
    if prompts is None:
        return []
    if isinstance(prompts, (Mapping, str, Image.Image)) or not isinstance(prompts, Iterable):
        raise BadSampleError(name, 'prompts', 'expected a list of prompts; put the prompt into []')
    prompts = _array(prompts, name, 'prompts') if hasattr(prompts, 'detach') else prompts
    if isinstance(prompts, np.ndarray) and prompts.ndim not in (2, 3):
        raise BadSampleError(
            name,
            'prompts',
            f'an array of prompts has shape (n, H, W), (n, 4) or (n, 2), got {prompts.shape}',
        )
    return [_prompt(prompt, i, name) for i, prompt in enumerate(prompts)]


def _prompt(prompt: Any, i: int, name: str) -> dict:
    if isinstance(prompt, Mapping):
        full = dict(id=i) | dict(prompt)
        if 'mask' in full and not isinstance(full['mask'], (Mapping, list, tuple)):
            full['mask'] = _array(full['mask'], name, f'prompts[{i}].mask')
        return full
    values = _array(prompt, name, f'prompts[{i}]')
    kind = {(1, 4): 'box', (1, 2): 'point'}.get((values.ndim, values.size))
    if values.ndim == 2:
        return dict(id=i, mask=values)
    if kind is None:
        raise BadSampleError(
            name,
            f'prompts[{i}]',
            'expected a dict, a mask (H, W), a box '
            f'[x1, y1, x2, y2] or a point [x, y], got {prompt!r:.200}',
        )
    return {'id': i, kind: values.tolist()}


def _array(values: Any, name: str, key: str) -> np.ndarray:
    try:
        return np.asarray(values.detach().cpu() if hasattr(values, 'detach') else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadSampleError(
            name, key, f'expected numbers of one shape, got {values!r:.200} ({error})'
        ) from error
