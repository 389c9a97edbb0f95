"""Presets of ShapesWorld data sets: vocabulary, sizes, counts and mixture shares."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Bumped whenever the same preset and seed would give other files.
GENERATOR_VERSION = 4
SPLITS = ('train', 'val', 'test')
MIN_IMAGE_SIZE = 32

COLOURS = {
    'red': (222, 38, 38),
    'green': (32, 168, 52),
    'blue': (38, 72, 226),
    'yellow': (246, 226, 40),
    'purple': (142, 44, 186),
    'cyan': (40, 208, 222),
    'orange': (246, 136, 24),
    'pink': (250, 130, 190),
}
KINDS = (
    'circle',
    'square',
    'triangle',
    'star',
    'cross',
    'heart',
    'ring',
    'diamond',
    'crescent',
    'arrow',
)
TEXTURES = ('plain', 'striped', 'dotted', 'checkered')
SIZES = ('small', 'medium', 'large')


@dataclass(frozen=True)
class Preset:
    """One kind of ShapesWorld.

    Attributes:
        name: Name on the command line.
        image_size: Side of the square images in pixels.
        kinds: Shapes drawn.
        colours: Colour names drawn, keys of :data:`COLOURS`.
        textures: Textures drawn.
        radii: Size name to the range of radii, in fractions of the image side.
        num_objects: Smallest and largest number of objects per image.
        min_visible: Smallest share of an object that stays visible.
        min_visible_area: Smallest visible area as a share of the image.
        distractor_prob: Probability that a further object copies all but one attribute of an
            earlier one.
        spoken: Attributes that expressions may name, in spoken order.
        superlatives: Superlative words in use.
        train_shares: Shares of attribute, relation and superlative sentences in training.
        eval_cycle: Expression categories of consecutive test references.
        sentences_per_object: Training sentences per object.
        eval_refs_per_image: References per validation or test image.
        counts: Images per split.
        eval_mcqs_per_image: Multiple-choice questions per validation or test image.
        image_format: ``'png'`` or ``'jpg'``.
        segmentation: ``'polygon'`` or ``'rle'`` in the RefCOCO annotation file; both are exact.
    """

    name: str
    image_size: int
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...]
    radii: dict[str, tuple[float, float]]
    num_objects: tuple[int, int]
    min_visible: float
    min_visible_area: float
    distractor_prob: float
    spoken: tuple[str, ...]
    superlatives: tuple[str, ...]
    train_shares: tuple[float, float, float]
    eval_cycle: tuple[str, ...]
    sentences_per_object: int
    eval_refs_per_image: int
    eval_mcqs_per_image: int
    image_format: str
    counts: dict[str, int]
    segmentation: str

    def with_options(
        self, image_size: int | None = None, counts: dict[str, int] | None = None
    ) -> Preset:
        """Copy with another image size or other image counts (None keeps the preset's).

        Raises:
            ValueError: The size is too small to tell the shapes apart, or a count is negative.
        """
        if image_size is not None and image_size < MIN_IMAGE_SIZE:
            raise ValueError(
                f'image size {image_size} is below {MIN_IMAGE_SIZE} pixels, where '
                'shapes cannot be told apart'
            )
        if any(split not in SPLITS or count < 0 for split, count in (counts or {}).items()):
            raise ValueError(f'counts must give numbers >= 0 for {SPLITS}, got {counts}')
        return replace(
            self, image_size=image_size or self.image_size, counts={**self.counts, **(counts or {})}
        )


MINI = Preset(
    name='mini',
    image_size=64,
    kinds=KINDS[:6],
    colours=tuple(COLOURS)[:6],
    textures=TEXTURES[:2],
    radii={'medium': (0.13, 0.19)},
    num_objects=(3, 5),
    min_visible=0.8,
    min_visible_area=0.012,
    distractor_prob=0.4,
    spoken=('colour', 'kind'),
    superlatives=('left', 'right', 'top', 'bottom'),
    train_shares=(0.65, 0.10, 0.25),
    eval_cycle=('attribute',) * 7 + ('relation',) + ('superlative',) * 2,
    sentences_per_object=4,
    eval_refs_per_image=2,
    eval_mcqs_per_image=1,
    image_format='png',
    counts={'train': 3000, 'val': 150, 'test': 300},
    segmentation='polygon',
)

FULL = Preset(
    name='full',
    image_size=80,
    kinds=KINDS[:8],
    colours=tuple(COLOURS),
    textures=TEXTURES[:3],
    radii={'small': (0.115, 0.135), 'large': (0.18, 0.21)},
    num_objects=(3, 6),
    min_visible=0.65,
    min_visible_area=0.01,
    distractor_prob=0.6,
    spoken=('size', 'texture', 'colour', 'kind'),
    superlatives=('leftmost', 'rightmost', 'topmost', 'bottommost', 'largest', 'smallest'),
    train_shares=(0.50, 0.25, 0.25),
    eval_cycle=('attribute', 'relation', 'attribute', 'superlative'),
    sentences_per_object=4,
    eval_refs_per_image=2,
    eval_mcqs_per_image=2,
    image_format='jpg',
    counts={'train': 12000, 'val': 300, 'test': 600},
    segmentation='rle',
)

PRESETS = {preset.name: preset for preset in (MINI, FULL)}
