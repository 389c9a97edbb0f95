"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform

#: Environment variable that leaves the allocator alone if it is 0.
VARIABLE = 'PIXELSAIL_KEEP_MEMORY'
# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _LARGEST = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, instead of giving it back to Linux each time.

    By default glibc maps every large tensor anew, and Linux clears its pages one fault at a time: a
    quarter to a half of a training step on a CPU. For programs that own their process; costs
    memory. :data:`VARIABLE` ``=0`` switches it off.

    Returns:
        bool: Whether it was done; only with glibc.
    """
    if os.environ.get(VARIABLE) == '0' or platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _NEVER_TRIM))
    return all(mallopt(setting, value) == 1 for setting, value in settings)
