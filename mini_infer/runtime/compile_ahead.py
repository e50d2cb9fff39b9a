"""Kernels compiled side by side and ahead of their use: a rehearsal shows which, they are compiled meanwhile.

Triton compiles a kernel when it is first launched, one after the other, and a C compiler makes a launcher for each
signature: 10 s for the 32 kernels of a 7B model. Threads load what other processes have compiled (compile_helpers.py);
where there are none, they compile, and half of their work they do one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from mini_infer.ops.dispatch import triton
from mini_infer.runtime.compile_helpers import CompileHelpers, settle_cache_keys

MAX_THREADS = 16
RUN_AT_ONCE = "_prepare_inputs_kernel"  # never skipped: torch's embedding must find valid tokens in its output


class CompileAhead:
    """Compiles for one CUDA device whatever is launched inside `rehearsal`, while the caller goes on."""

    def __init__(self, device: torch.device, helpers: CompileHelpers | None = None):
        index = torch.cuda.current_device() if device.index is None else device.index
        self._pool = ThreadPoolExecutor(MAX_THREADS, "compile", initializer=torch.cuda.set_device, initargs=(index,))
        self._helpers = helpers
        settle_cache_keys()
        self._asked: dict[tuple[Any, str], Future[Any]] = {}
        # Before its first kernel Triton takes a second or two: it hashes itself for the cache's sake, imports the rest
        # of its compiler, and has a C compiler make its driver, if that is not in the cache. Now nobody waits for it.
        self._awake = self._pool.submit(_nothing_kernel.warmup, grid=(1,))

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Launches of kernels that are not compiled yet do nothing here but name them; all others run.

        So what a rehearsed step computes is garbage, and it must not depend on what it computes.
        """
        named: dict[tuple[Any, str], None] = {}

        def skip(*, fn: Any, compile: dict[str, Any], is_manual_warmup: bool, **_: Any) -> bool:
            if is_manual_warmup or fn.name == RUN_AT_ONCE:  # the former: one of our threads
                return False
            named[fn.jit_function, compile["specialization_data"]] = None
            return True

        wait([self._awake])  # had it failed, the first launch would say so
        hooks = triton.knobs.runtime
        before = hooks.jit_cache_hook
        hooks.jit_cache_hook = skip
        try:
            yield
        finally:
            hooks.jit_cache_hook = before
        for kernel, specialization in named.keys() - self._asked.keys():
            self._asked[kernel, specialization] = self._pool.submit(self._compile, kernel, specialization)

    def wait(self) -> bool:
        """Until all is compiled that can be. False when something could not: launching it will say why, or do it."""
        self._pool.shutdown()
        if self._helpers is not None:
            self._helpers.close()
        return all(future.exception() is None for future in self._asked.values())

    def _compile(self, kernel: Any, specialization: str) -> Any:
        """The kernel, compiled, and what launches it, which a C compiler makes when it is first asked for."""
        if self._helpers is not None:
            self._helpers.compile(kernel, specialization)
        return kernel.preload(specialization).run


@triton.jit
def _nothing_kernel():
    pass
