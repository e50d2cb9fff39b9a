"""Kernels compiled side by side and ahead of their use: a rehearsal shows which, they are compiled meanwhile.

Triton compiles a kernel when it is first launched, one after the other, and a C compiler makes a launcher for each
signature: 10 s for the 32 kernels of a 7B model. Threads load what other processes have compiled (compile_helpers.py);
where there are none, they compile, and half of their work they do one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from mini_infer.ops.dispatch import triton
from mini_infer.runtime.compile_helpers import MOST, CompileHelper, fork_helpers, settle_cache_keys

MAX_THREADS = 16
RUN_AT_ONCE = "_prepare_inputs_kernel"  # never skipped: torch's embedding must find valid tokens in its output


class CompileAhead:
    """Compiles for one CUDA device whatever is launched inside `rehearsal`, while the caller goes on."""

    def __init__(self, device: torch.device, most_helpers: int = MOST):
        index = torch.cuda.current_device() if device.index is None else device.index
        self._pool = ThreadPoolExecutor(MAX_THREADS, "compile", initializer=torch.cuda.set_device, initargs=(index,))
        self._device, self._most_helpers = device, most_helpers
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
        stand_ins = ExitStack()

        def skip(*, fn: Any, compile: dict[str, Any], is_manual_warmup: bool, **_: Any) -> bool:
            if is_manual_warmup or fn.name == RUN_AT_ONCE:  # the former: one of our threads
                return False
            named[fn.jit_function, compile["specialization_data"]] = None
            stand_ins.enter_context(_stand_in(fn.jit_function, compile))
            return True

        wait([self._awake])  # had it failed, the first launch would say so
        hooks = triton.knobs.runtime
        before = hooks.jit_cache_hook
        hooks.jit_cache_hook = skip
        try:
            with stand_ins:
                yield
        finally:
            hooks.jit_cache_hook = before
        work = [each for each in named if each not in self._asked]
        helpers = fork_helpers(work, self._device, self._most_helpers)
        for i, (kernel, specialization) in enumerate(work):
            helper = helpers[i % len(helpers)] if helpers else None
            self._asked[kernel, specialization] = self._pool.submit(_compile, kernel, specialization, helper)

    def wait(self) -> bool:
        """Until all is compiled that can be. False when something could not: launching it will say why, or do it."""
        self._pool.shutdown()
        return all(future.exception() is None for future in self._asked.values())


@contextmanager
def _stand_in(kernel: Any, compile: dict[str, Any]) -> Iterator[None]:
    """Something that launches nothing in the place of a compiled kernel: Triton takes 0.4 ms each time to find that
    there is none."""
    try:
        cache = kernel.device_caches[compile["device"]][0]
    except (AttributeError, LookupError, TypeError):  # another Triton, which takes these 0.4 ms
        yield
        return
    nothing = SimpleNamespace(run=_nothing, launch_metadata=_nothing, function=None, packed_metadata=None)
    cache[compile["key"]] = nothing
    try:
        yield
    finally:
        if cache.get(compile["key"]) is nothing:
            del cache[compile["key"]]


def _compile(kernel: Any, specialization: str, helper: CompileHelper | None) -> Any:
    """The kernel, compiled, and what launches it, which a C compiler makes when it is first asked for; both are in the
    cache when `helper` has ended, if there is one."""
    if helper is not None:
        helper.wait()
    return kernel.preload(specialization).run


def _nothing(*_: Any) -> None:
    pass


@triton.jit
def _nothing_kernel():
    pass
