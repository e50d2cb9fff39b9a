"""Processes that compile Triton kernels into Triton's cache: most of a compiler in Python is nothing for threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.pool import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mini_infer.ops.dispatch import triton

MOST = 16
PATIENCE_S = 20.0  # for one kernel; then who asked compiles it


class CompileHelpers:
    """Forked from this process, so they have imported what it has; they never touch the GPU.

    What they compile, its launcher included, whoever compiles it next finds in the cache. Whatever goes wrong with them
    costs time alone.
    """

    def __init__(self, capability: tuple[int, int], count: int):
        """For GPUs of a compute capability. To be made while no thread of ours is at work."""
        settle_cache_keys()
        with warnings.catch_warnings():  # of forking beside threads: the driver's; a helper that hangs is given up
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pool: Pool = multiprocessing.get_context("fork").Pool(count, _become_helper, capability)

    def begin(self, kernel: Any, specialization: str) -> Callable[[], None]:
        """Have a kernel (a triton.JITFunction) compiled; what is returned waits for that, or not too long."""
        work = self._pool.apply_async(_compile, (kernel.__module__, kernel.__name__, specialization))

        def wait() -> None:
            with suppress(Exception):  # who compiles it then will see
                work.get(PATIENCE_S)

        return wait

    def close(self) -> None:
        self._pool.terminate()


def make_helpers(device: torch.device) -> CompileHelpers | None:
    """One for each core; None where they would not help: kernels are in the cache, or no process can be forked."""
    if device.type != "cuda" or "fork" not in multiprocessing.get_all_start_methods():
        return None
    cache = Path(triton.knobs.cache.dir)
    if multiprocessing.current_process().daemon or (cache.is_dir() and any(cache.iterdir())):
        return None
    count = min(MOST, len(os.sched_getaffinity(0)))
    return CompileHelpers(torch.cuda.get_device_capability(device), count) if count > 1 else None


def settle_cache_keys() -> None:
    """Have Triton compute the keys of all our kernels, which it keeps, in a fixed order.

    A kernel's key is of all functions that it calls, and where these call each other in a circle (tl.sort and tl.max
    do) it depends on which of them Triton comes across first: another order would miss what is in the cache.
    """
    kernels = {(value.__module__, value.__name__): value for name, module in list(sys.modules.items())
               if name.startswith("mini_infer.") for value in vars(module).values()
               if isinstance(value, triton.JITFunction)}
    for _, kernel in sorted(kernels.items()):
        kernel.cache_key  # noqa: B018


def _become_helper(major: int, minor: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not with what the parent does then
    target = GPUTarget("cuda", 10 * major + minor, 32)
    triton.runtime.driver.set_active(SimpleNamespace(  # instead of the one that would ask the GPU
        get_current_target=lambda: target, get_current_device=lambda: 0, launcher_cls=CudaLauncher,
        utils=SimpleNamespace(launch=None)))


def _compile(module: str, name: str, specialization: str) -> None:
    compiled = getattr(sys.modules[module], name).preload(specialization)
    with suppress(Exception):  # where the launcher of a signature is no C program of its own, it needs the GPU
        triton.runtime.driver.active.launcher_cls(compiled.src, compiled.metadata)
