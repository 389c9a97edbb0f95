"""Reasons of skipped samples, whatever a file holds."""

from pixelsail_mm.datasets.files.skip_counter import SkipCounter


def test_halves_of_characters_are_counted():
    """JSON can hold them, and no file can."""
    counter = SkipCounter()
    counter.add('bad text \ud800')
    counter.add('bad text \ud800')
    assert counter.counts() == {'bad text \\ud800': 2}
