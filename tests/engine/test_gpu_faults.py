"""A GPU that has no memory for a step, and one that has failed for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mini_infer import LLM, SamplingParams
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.gpu

LOST = """
import os, sys, torch
from mini_infer import LLM, SamplingParams
from mini_infer.core.plan import DeviceLostError

llm = LLM(sys.argv[1], device="cuda", num_kv_blocks=64, skip_tokenizer_init=True)
runner = llm._loop._executor._runner
execute = type(runner).execute

def broken(*args):
    torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # an assertion on the device
    return execute(*args)

type(runner).execute = broken
try:
    for _ in range(3):
        llm.generate([1, 2], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)
except DeviceLostError:
    os._exit(7)  # what torch gives back on the way out would fail as well
"""


def test_no_memory_for_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(write_checkpoint(tmp_path / "model")), device="cuda", num_kv_blocks=64, skip_tokenizer_init=True)
    runner = llm._loop._executor._runner  # type: ignore[attr-defined]
    execute, short = type(runner).execute, [True]

    def hungry(*args: object) -> object:
        if short.pop() if short else False:
            torch.empty(1 << 46, device="cuda")
        return execute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(runner), "execute", hungry)
    params = SamplingParams(max_tokens=4, temperature=0, detokenize=False)
    out = llm.generate([1, 2], params, use_tqdm=False)[0]
    assert out.finish_reason == "error" and "out of GPU memory" in (out.outputs[0].error or "")
    assert llm.stats().used_blocks == 0
    assert llm.generate([1, 2], params, use_tqdm=False)[0].finish_reason == "length"


def test_a_gpu_that_has_failed_ends_the_engine(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", LOST, str(model)], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 7, done.stderr
