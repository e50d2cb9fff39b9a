"""Kernels compiled while something else goes on; and that the rehearsal shows all that traffic launches."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mini_infer.ops.dispatch import HAS_TRITON, triton
from mini_infer.runtime.compile_ahead import RUN_AT_ONCE, CompileAhead

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, though no GPU")


class Kernel:
    """Stands for a triton.JITFunction: says what was compiled, and in which thread."""

    def __init__(self, name: str, broken: bool = False):
        self.name = name
        self.compiled: list[tuple[str, int]] = []
        self._broken = broken

    def preload(self, specialization: str) -> Any:
        if self._broken:
            raise RuntimeError("no such instruction")
        self.compiled.append((specialization, threading.get_ident()))
        return SimpleNamespace(run=None)

    def launch(self, specialization: str) -> bool:
        """True when the launch goes on, as Triton asks its hook."""
        hook = triton.knobs.runtime.jit_cache_hook
        return hook is None or not hook(
            key=specialization, fn=SimpleNamespace(name=self.name, module="m", jit_function=self),
            compile={"specialization_data": specialization}, is_manual_warmup=False, already_compiled=False)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> CompileAhead:
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    return CompileAhead(torch.device("cuda:0"), most_helpers=0)


def test_each_variant_is_compiled_once_elsewhere(ahead: CompileAhead) -> None:
    one, two = Kernel("one"), Kernel("two")
    with ahead.rehearsal():
        assert [kernel.launch(spec) for kernel, spec in ((one, "a"), (one, "b"), (two, "a"), (one, "a"))] == [False] * 4
        assert not one.compiled  # nothing launches before the rehearsal is over
    with ahead.rehearsal():
        assert not one.launch("a")
    assert one.launch("c")
    assert ahead.wait()
    assert sorted(spec for spec, _ in one.compiled) == ["a", "b"] and [spec for spec, _ in two.compiled] == ["a"]
    assert threading.get_ident() not in {thread for _, thread in one.compiled + two.compiled}


def test_inputs_are_prepared_all_the_same(ahead: CompileAhead) -> None:
    with ahead.rehearsal():
        assert Kernel(RUN_AT_ONCE).launch("a")
    assert ahead.wait()


def test_what_cannot_be_compiled_is_left_to_the_launch(ahead: CompileAhead) -> None:
    with ahead.rehearsal():
        Kernel("broken", broken=True).launch("a")
    assert not ahead.wait()


def test_the_hook_is_put_back_after_an_error(ahead: CompileAhead) -> None:
    before = triton.knobs.runtime.jit_cache_hook
    with pytest.raises(ValueError, match="stop"), ahead.rehearsal():
        raise ValueError("stop")
    assert triton.knobs.runtime.jit_cache_hook is before


def test_traffic_launches_nothing_that_was_not_rehearsed(repo: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "tests.runtime.kernel_coverage", "150"], cwd=repo, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert " 0 more in traffic" in done.stderr


LAUNCH_TWICE = """
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget

from mini_infer.ops import norm
from mini_infer.runtime import compile_ahead

triton.runtime.driver.set_active(SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
    get_current_stream=lambda device: 0))
torch.Tensor.is_cuda = property(lambda self: True)
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.set_device = lambda index: None
asked = []
inner = compile_ahead._stand_in
compile_ahead._stand_in = lambda kernel, compile: (asked.append(compile["key"]), inner(kernel, compile))[1]
ahead = compile_ahead.CompileAhead(torch.device("cuda:0"), most_helpers=2)
with ahead.rehearsal():
    for rows in (9, 9, 64, 1, 1):
        norm.rms_norm(torch.zeros(rows, 64), torch.zeros(64), 1e-6)
    kernels = norm._rms_norm_kernel.device_caches[0][0]
    assert len(kernels) == len(asked) == 2, asked  # one row starts early, more do not
assert not kernels or not any(isinstance(kernel, SimpleNamespace) for kernel in kernels.values())
ahead.wait()
assert len(kernels) == 2 and all(kernel.asm["cubin"] for kernel in kernels.values())
print("done")
"""


def test_a_kernel_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    """And when the rehearsal is over, nothing stands in its place any more. With the real Triton, for a Hopper."""
    script = tmp_path / "launch_twice.py"
    script.write_text(LAUNCH_TWICE)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache"),
                   "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr
