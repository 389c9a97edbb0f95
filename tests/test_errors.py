"""What a user can mend."""

import copy

from pixelsail_mm.errors import BadSampleError, CheckpointError, MissingFilesError, first_line


def test_checkpoint_error_crosses_process_borders():
    """``copy`` takes it apart as pickle does, with which a pool of workers would break."""
    error = copy.copy(CheckpointError('a.pth', 'is cut', 'get it again'))
    assert str(error) == 'a.pth: is cut; get it again'
    assert (error.path, error.reason, error.remedy) == ('a.pth', 'is cut', 'get it again')


def test_first_line_of_a_long_message():
    assert first_line(ValueError('\n what\n where')) == 'what'
    assert first_line(ValueError('Size mismatch:\n\tweight\n\tbias')) == 'Size mismatch: weight'
    assert first_line(ValueError('It failed. In PyTorch 2.6, advice')) == 'It failed.'
    assert first_line(EOFError()) == 'EOFError'


def test_a_missing_path_is_told_once_with_its_keys():
    error = copy.copy(MissingFilesError([('a', 'x'), ('b', 'x'), ('c', 'y')], 'config'))
    assert str(error).startswith(
        'config: 2 files or folders are missing:\n  x   (a and 1 more)\n'
        '  y   (c)\ncorrect these keys'
    )


def test_messages_quote_the_ends_of_what_is_huge():
    for error in (
        BadSampleError('a.json', 'k' * 10**6, 'r' * 10**6),
        CheckpointError('a', 'r' * 10**6, 'copy it'),
    ):
        assert len(str(copy.copy(error))) < 4000 and ' [...] ' in str(error)
