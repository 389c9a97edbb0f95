"""Colours of masks and prompts, and what is readable on them."""

from __future__ import annotations

Colour = tuple[int, int, int]

# Vivid and far apart in hue and lightness; neighbours in the list stay apart for colour-blind eyes.
PALETTE: tuple[Colour, ...] = (
    (226, 46, 76),
    (30, 117, 230),
    (20, 160, 90),
    (243, 135, 18),
    (138, 63, 200),
    (0, 172, 193),
    (217, 60, 172),
    (122, 148, 24),
    (141, 86, 56),
    (86, 98, 116),
)

INK: Colour = (28, 32, 40)
MUTED: Colour = (112, 120, 134)
PAPER: Colour = (255, 255, 255)
RULE: Colour = (222, 226, 232)


def colour_of(index: int) -> Colour:
    """Colour of the mask or prompt ``index``; repeats after ten."""
    return PALETTE[index % len(PALETTE)]


def ink_on(background: Colour) -> Colour:
    """White where it is readable on ``background``, else black.

    Readable means a contrast of 3:1, which WCAG asks of large or bold text.
    """
    linear = [
        (c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return PAPER if 1.05 / (luminance + 0.05) >= 3 else INK
