"""What a user can mend."""

import copy

from pixelsail_mm.errors import CheckpointError, first_line


def test_checkpoint_error_crosses_process_borders():
    """``copy`` takes it apart as pickle does, with which a pool of workers would break."""
    error = copy.copy(CheckpointError('a.pth', 'is cut', 'get it again'))
    assert str(error) == 'a.pth: is cut; get it again'
    assert (error.path, error.reason, error.remedy) == ('a.pth', 'is cut', 'get it again')


def test_first_line_of_a_long_message():
    assert first_line(ValueError('\n what\n where')) == 'what'
