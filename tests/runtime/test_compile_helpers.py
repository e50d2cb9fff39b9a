"""Processes that fill Triton's cache: what they compile is found there, and what goes wrong does not matter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mini_infer.ops.dispatch import HAS_TRITON, triton
from mini_infer.runtime import compile_helpers
from mini_infer.runtime.compile_helpers import CompileHelpers, make_helpers

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, though no GPU")

ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.getcwd()}
COMPILE_ELSEWHERE = """
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget

from mini_infer.ops import filters, norm
from mini_infer.runtime.compile_helpers import CompileHelpers


def files():
    return {path.relative_to(triton.knobs.cache.dir) for path in Path(triton.knobs.cache.dir).rglob("*.cubin")}


if __name__ == "__main__":
    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_current_stream=lambda device: 0))
    torch.Tensor.is_cuda = property(lambda self: True)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    filters._threshold_kernel.cache_key  # in an order of its own
    helpers = CompileHelpers((9, 0), 2)
    asked = []
    triton.knobs.runtime.jit_cache_hook = lambda *, fn, compile, is_manual_warmup, **_: (
        not is_manual_warmup and asked.append((fn.jit_function, compile["specialization_data"])) is None)
    norm.rms_norm(torch.zeros(3, 64), torch.zeros(64), 1e-6)
    filters.thresholds_triton(torch.zeros(3, 4096), torch.zeros(3, dtype=torch.int32), torch.zeros(4, 16).int())
    assert len(asked) == 4 and not files()
    for wait in [helpers.begin(kernel, specialization) for kernel, specialization in asked]:
        wait()
    compiled = files()
    assert len(compiled) == 4, compiled
    for kernel, specialization in asked:
        kernel.preload(specialization)
    assert files() == compiled
    helpers.close()
    print("done")
"""


def test_what_they_compile_is_found_in_the_cache(tmp_path: Path) -> None:
    script = tmp_path / "compile_elsewhere.py"
    script.write_text(COMPILE_ELSEWHERE)
    environment = ENVIRONMENT | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr


class Trouble:
    """Stands for a kernel."""

    def __init__(self, name: str):
        self.__name__ = name

    def preload(self, specialization: str) -> None:
        if self.__name__ == "hanging":
            time.sleep(60)
        raise RuntimeError("no such instruction")


broken, hanging = Trouble("broken"), Trouble("hanging")


def test_what_goes_wrong_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_helpers, "PATIENCE_S", 0.5)
    helpers = CompileHelpers((9, 0), 2)
    begin = time.monotonic()
    for kernel in (broken, hanging, Trouble("unknown")):
        helpers.begin(kernel, "")()
    helpers.close()
    assert time.monotonic() - begin < 30


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []
    monkeypatch.setattr(compile_helpers, "CompileHelpers", lambda capability, count: made.append((capability, count)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    make_helpers(torch.device("cpu"))
    assert not made
    make_helpers(torch.device("cuda"))
    assert made == [((9, 0), compile_helpers.MOST)]
    (tmp_path / "cache/one").mkdir(parents=True)
    make_helpers(torch.device("cuda"))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "none"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    make_helpers(torch.device("cuda"))
    assert len(made) == 1


def test_keys_do_not_depend_on_the_order_of_imports() -> None:
    """Where functions call each other in a circle, Triton's own depend on which of them is asked for first."""
    program = ("from mini_infer.runtime.compile_helpers import settle_cache_keys\nfrom mini_infer.ops import {}\n"
               "settle_cache_keys()\nprint(filters._order_kernel.cache_key, filters._threshold_kernel.cache_key)")
    keys = {subprocess.run([sys.executable, "-c", program.format(names)], capture_output=True, text=True, check=True,
                           env=ENVIRONMENT).stdout for names in ("filters", "norm, sampling, filters")}
    assert len(keys) == 1
