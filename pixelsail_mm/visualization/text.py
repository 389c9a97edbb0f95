"""Wrapped text in which ``[SEG]`` and ``<PromptK>`` appear as chips in their mask's colour."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pixelsail_mm.visualization.colours import INK, MUTED, Colour, colour_of, ink_on

_TOKENS = re.compile(r'(\[SEG\]|<Prompt\d+>|</?p>)')


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib (a dependency of MMEngine) ships everywhere."""
    import matplotlib

    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts/ttf', name), size)


@dataclass(frozen=True)
class Word:
    """A piece of text that is not broken, unless it is wider than a line.

    Attributes:
        text: What is written.
        bold: Bold face, used for phrases between ``<p>`` and ``</p>``.
        chip: Background colour; ``None`` for plain text.
        space: Whether a blank separates it from the word before.
        line: Whether it begins a new line.
    """

    text: str
    bold: bool = False
    chip: Colour | None = None
    space: bool = True
    line: bool = False


def parse(text: str) -> list[Word]:
    """Split a question or an answer into words; the i-th ``[SEG]`` gets the i-th mask's colour."""
    words: list[Word] = []
    masks, bold, space, line = 0, False, False, False
    for piece in _TOKENS.split(text):
        if piece in ('<p>', '</p>'):
            bold = piece == '<p>'
        elif piece == '[SEG]':
            words.append(Word(f'mask {masks + 1}', True, colour_of(masks), space, line))
            masks, space, line = masks + 1, False, False
        elif _TOKENS.fullmatch(piece):
            words.append(Word(piece[1:-1], True, colour_of(int(piece[7:-1])), space, line))
            space, line = False, False
        else:
            for part in re.split(r'(\s+)', piece):
                if not part or part.isspace():
                    space, line = space or bool(part), line or '\n' in part
                else:
                    words.append(Word(part, bold, None, space, line))
                    space, line = False, False
    return words


class TextBlock:
    """A paragraph with a small label in front, wrapped to a width.

    Args:
        label: E.g. ``'Answer'``; set in grey.
        text: The text; see :func:`parse`.
        width: Width in pixels, label included.
        size: Font size in pixels.
        label_width: Width kept free for the label.
        max_lines: More lines than this are cut with an ellipsis.
    """

    def __init__(
        self, label: str, text: str, width: int, size: int, label_width: int, max_lines: int = 10
    ) -> None:
        self.label = label
        self.size = size
        self.label_width = label_width
        self.line_height = round(size * 1.55)
        self._blank = font(size).getlength(' ')
        self._pad = round(size * 0.3)
        self.lines = self._wrap(parse(text), max(width - label_width, size))
        if len(self.lines) > max_lines:
            self.lines = [
                *self.lines[: max_lines - 1],
                [*self.lines[max_lines - 1][:-1], Word('…')],
            ]

    @property
    def height(self) -> int:
        """Height in pixels; one line at least."""
        return self.line_height * max(len(self.lines), 1)

    def draw(self, canvas: Image.Image, left: int, top: int) -> None:
        """Write the block onto an RGB picture."""
        pen = ImageDraw.Draw(canvas)
        middle = top + self.line_height // 2
        pen.text((left, middle), self.label, MUTED, font(self.size), 'lm')
        if not self.lines:
            pen.text((left + self.label_width, middle), '(empty)', MUTED, font(self.size), 'lm')
        for line in self.lines:
            x = float(left + self.label_width)
            for i, word in enumerate(line):
                x += self._blank if i and word.space else 0
                self._draw_word(pen, word, x, middle)
                x += self._width(word)
            middle += self.line_height

    def _draw_word(self, pen: ImageDraw.ImageDraw, word: Word, x: float, middle: int) -> None:
        face = font(self.size, word.bold)
        if word.chip is None:
            pen.text((x, middle), word.text, INK, face, 'lm')
            return
        half = round(self.size * 0.68)
        pen.rounded_rectangle(
            (x, middle - half, x + self._width(word), middle + half), self.size // 3, word.chip
        )
        pen.text((x + self._pad, middle), word.text, ink_on(word.chip), face, 'lm')

    def _width(self, word: Word) -> float:
        return font(self.size, word.bold).getlength(word.text) + 2 * self._pad * bool(word.chip)

    def _wrap(self, words: list[Word], width: int) -> list[list[Word]]:
        lines: list[list[Word]] = []
        x = 0.0
        for word in (part for whole in words for part in self._break(whole, width)):
            gap = self._blank if word.space else 0
            if not lines or word.line or x + gap + self._width(word) > width:
                lines.append([])
                x, gap = 0.0, 0
            lines[-1].append(word)
            x += gap + self._width(word)
        return lines

    def _break(self, word: Word, width: int) -> list[Word]:
        """Cut a word wider than the line into pieces that fit."""
        if self._width(word) <= width or len(word.text) == 1:
            return [word]
        count = max(1, int(len(word.text) * width / self._width(word)) - 1)
        rest = replace(word, text=word.text[count:], space=False, line=False)
        return [replace(word, text=word.text[:count]), *self._break(rest, width)]
