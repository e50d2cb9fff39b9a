"""Processes that compile Triton kernels into Triton's cache: most of a compiler in Python is nothing for threads."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mini_infer.ops.dispatch import triton

MOST = 16
PATIENCE_S = 20  # for a helper; then it ends, and who needs its kernels compiles them
POLL_S = 0.01

Work = Sequence[tuple[Any, str]]  # kernels (triton.JITFunction), each with its specialization


class CompileHelper:
    """A fork of this process, which has imported all that is needed: it compiles some kernels, launchers included, and
    ends. Whoever compiles them next finds them in the cache; whatever goes wrong here costs time alone.

    It never touches the GPU, shares no lock, pipe or file with its parent, and ends by itself if that dies.
    """

    def __init__(self, work: Work, capability: tuple[int, int]):
        """For a GPU of this compute capability. Raises OSError where no process can be forked."""
        self._deadline = time.monotonic() + PATIENCE_S
        self._reaping = threading.Lock()
        with warnings.catch_warnings():  # of forking beside threads: it needs nothing that these may hold
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid: int | None = os.fork()
        if self._pid == 0:
            try:
                _compile_all(work, capability)
            finally:
                os._exit(0)

    def wait(self) -> None:
        """Until it has ended, which it is made to once its time is over."""
        with self._reaping:
            while self._pid is not None:
                if time.monotonic() > self._deadline:
                    with suppress(ProcessLookupError):
                        os.kill(self._pid, signal.SIGKILL)
                try:
                    ended, _ = os.waitpid(self._pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has asked for it
                    ended = self._pid
                if ended:
                    self._pid = None
                else:
                    time.sleep(POLL_S)


def fork_helpers(work: Work, device: torch.device, most: int = MOST) -> list[CompileHelper]:
    """Helpers that share the work out among them, one a core: the i-th of n has the i-th kernel, the n + i-th and so
    on. None where the cache may hold these kernels already, or where no process can be forked."""
    helpers: list[CompileHelper] = []
    with suppress(OSError, AttributeError):  # the latter where there is no fork
        cache = Path(triton.knobs.cache.dir)
        count = min(most, len(os.sched_getaffinity(0)), len(work))
        if count > 1 and (not cache.is_dir() or len(os.listdir(cache)) < len(work)):
            capability = torch.cuda.get_device_capability(device)
            for i in range(count):
                helpers.append(CompileHelper(work[i::count], capability))
    return helpers


def _compile_all(work: Work, capability: tuple[int, int]) -> None:
    """What a helper does."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)  # ends it, should its parent not
    gc.disable()  # what the parent's garbage would do, it shall do there
    os.closerange(3, 1 << 16)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.nice(5)
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher

    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    triton.runtime.driver.set_active(SimpleNamespace(  # instead of the one that would ask the GPU
        get_current_target=lambda: target, get_current_device=lambda: 0, utils=SimpleNamespace(launch=None)))
    for kernel, specialization in work:
        with suppress(Exception):  # of a launcher too: where it is no C program of its own, making it needs the GPU
            compiled = kernel.preload(specialization)
            CudaLauncher(compiled.src, compiled.metadata)


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
