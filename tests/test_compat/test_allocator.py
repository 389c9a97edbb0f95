"""Freed memory that is kept costs no page faults when it is used again."""

import platform

import pytest

FAULTS = """
import resource, torch
from pixelsail_mm.compat.allocator import keep_freed_memory
print(int(keep_freed_memory()))
for _ in range(16):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc')
def test_page_faults(run_command, warm_python):
    found = {}
    for setting in ('0', '1'):
        done = run_command(warm_python, '-c', FAULTS, PIXELSAIL_KEEP_MEMORY=setting)
        assert done.returncode == 0, done.stderr
        kept, faults = map(int, done.stdout.split()[-2:])
        assert kept == int(setting)
        found[setting] = faults
    # Ten times 64 MiB are at least 320 pages of 2 MiB, or 163,840 of 4 KiB.
    assert found['1'] < found['0'] / 10
