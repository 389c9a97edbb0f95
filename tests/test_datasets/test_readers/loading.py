"""The first stages of every pipeline, as tests of readers use them."""

from pixelsail_mm.datasets.transforms import LoadImage, LoadMasks, LoadVisualPrompts


def load(record):
    """Decode image, masks and prompts; prompts keep the order of the record."""
    for transform in (LoadImage(), LoadMasks(), LoadVisualPrompts(sort_by_area=False)):
        record = transform(record)
    return record
