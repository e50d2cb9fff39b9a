"""Processes that fill Triton's cache: what they compile is found there, and what goes wrong does not matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mini_infer.ops.dispatch import HAS_TRITON, triton
from mini_infer.runtime import compile_helpers
from mini_infer.runtime.compile_helpers import CompileHelper, fork_helpers

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, though no GPU")

ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.getcwd()}
COMPILE_ELSEWHERE = """
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget

from mini_infer.ops import filters, norm
from mini_infer.runtime.compile_helpers import fork_helpers


def files():
    return {path.relative_to(triton.knobs.cache.dir) for path in Path(triton.knobs.cache.dir).rglob("*.cubin")}


if __name__ == "__main__":
    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_current_stream=lambda device: 0))
    torch.Tensor.is_cuda = property(lambda self: True)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    filters._threshold_kernel.cache_key  # in an order of its own
    asked = []
    triton.knobs.runtime.jit_cache_hook = lambda *, fn, compile, is_manual_warmup, **_: (
        not is_manual_warmup and asked.append((fn.jit_function, compile["specialization_data"])) is None)
    norm.rms_norm(torch.zeros(3, 64), torch.zeros(64), 1e-6)
    filters.thresholds_triton(torch.zeros(3, 4096), torch.zeros(3, dtype=torch.int32), torch.zeros(4, 16).int())
    assert len(asked) == 4 and not files()
    helpers = fork_helpers(asked, torch.device("cuda:0"))
    assert 1 < len(helpers) <= 4
    for helper in helpers:
        helper.wait()
        helper.wait()
    compiled = files()
    assert len(compiled) == 4, compiled
    for kernel, specialization in asked:
        kernel.preload(specialization)
    assert files() == compiled
    assert not fork_helpers(asked[:1], torch.device("cuda:0")), "there is enough in the cache"
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

    def __init__(self, what: str):
        self._what = what

    def preload(self, specialization: str) -> None:
        os.write(1, b"this goes nowhere")
        if self._what == "hangs":
            time.sleep(60)
        elif self._what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("no such instruction")


@pytest.mark.parametrize("what", ["fails", "hangs", "dies", "is nobody's any more"])
def test_what_goes_wrong_does_not_matter(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                         what: str) -> None:
    monkeypatch.setattr(compile_helpers, "PATIENCE_S", 1)
    begin = time.monotonic()
    helper = CompileHelper([(Trouble(what), "")], (9, 0))
    if what == "is nobody's any more":
        os.waitpid(helper._pid, 0)
    waiting = [threading.Thread(target=helper.wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    assert time.monotonic() - begin < 30
    assert capfd.readouterr().out == ""


def test_an_orphan_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_helpers, "PATIENCE_S", 1)
    helper = CompileHelper([(Trouble("hangs"), "")], (9, 0))
    assert os.waitstatus_to_exitcode(os.waitpid(helper._pid, 0)[1]) == -signal.SIGALRM


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[int] = []
    monkeypatch.setattr(compile_helpers, "CompileHelper", lambda work, capability: made.append(len(work)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    work: list[tuple[object, str]] = [(Trouble("fails"), "")] * 41
    fork_helpers(work, torch.device("cuda"))
    assert made == [3] * 9 + [2] * 7
    for i in range(41):  # as many as there are kernels
        (tmp_path / f"cache/{i}").mkdir(parents=True)
    fork_helpers(work, torch.device("cuda"))
    assert len(made) == 16
    (tmp_path / "cache/40").rmdir()
    fork_helpers(work, torch.device("cuda"))
    assert len(made) == 32
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    fork_helpers(work, torch.device("cuda"))
    assert len(made) == 32


def test_a_machine_that_has_no_room_for_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fork() -> int:
        raise BlockingIOError("too many")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "fork", fork)
    assert fork_helpers([(Trouble("fails"), "")] * 5, torch.device("cuda")) == []


def test_keys_do_not_depend_on_the_order_of_imports() -> None:
    """Where functions call each other in a circle, Triton's own depend on which of them is asked for first."""
    program = ("from mini_infer.runtime.compile_helpers import settle_cache_keys\nfrom mini_infer.ops import {}\n"
               "settle_cache_keys()\nprint(filters._order_kernel.cache_key, filters._threshold_kernel.cache_key)")
    keys = {subprocess.run([sys.executable, "-c", program.format(names)], capture_output=True, text=True, check=True,
                           env=ENVIRONMENT).stdout for names in ("filters", "norm, sampling, filters")}
    assert len(keys) == 1
