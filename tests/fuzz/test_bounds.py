"""The bounds of a case hold, whatever the code under test catches."""

import pytest

from pixelsail_mm.errors import BadSampleError
from tests.fuzz.cases import TooSlowError, bounded, outcome


def test_memory_is_bounded():
    with bounded(megabytes=100):
        bytearray(50 * 2**20)
    with pytest.raises(MemoryError), bounded(megabytes=100):
        bytearray(200 * 2**20)
    bytearray(200 * 2**20)


def test_time_is_bounded():
    with pytest.raises(TooSlowError), bounded(seconds=0.05):
        while True:
            try:
                sum(range(1000))
            except Exception:  # as a reader might
                pass


def test_other_errors_and_errors_without_a_file_are_finds():
    def fail(error):
        raise error

    assert outcome(lambda: 3, 'a.json') == 3
    found = outcome(lambda: fail(BadSampleError('a.json', 'k', 'r')), 'a.json')
    assert isinstance(found, BadSampleError)
    with pytest.raises(AssertionError, match='names no file'):
        outcome(lambda: fail(BadSampleError(None, 'k', 'r')), 'a.json')
    with pytest.raises(KeyError):
        outcome(lambda: fail(KeyError('k')), 'a.json')
