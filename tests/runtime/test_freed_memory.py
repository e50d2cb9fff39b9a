"""Freed memory is kept for a while, and no longer."""

from __future__ import annotations

import os
import platform

import pytest

from mini_infer.runtime.freed_memory import GIVE_BACK_SECONDS, FreedMemory

MIB = 1 << 20


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_kept_for_a_while() -> None:
    now = 0.0
    freed = FreedMemory(lambda: now)
    arrays = [b"x" * MIB for _ in range(65)]
    full = resident()
    del arrays[:-1]  # the last one lies behind the others
    freed.give_back()
    assert resident() > full - 4 * MIB
    now = GIVE_BACK_SECONDS
    freed.give_back()
    assert resident() < full - 48 * MIB
