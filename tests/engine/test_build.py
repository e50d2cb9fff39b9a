"""Which device an engine takes, and what it says when there is none."""

from __future__ import annotations

import pytest
import torch

from mini_infer.config import ConfigError
from mini_infer.engine import build
from mini_infer.engine.build import pick_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    count, has_triton = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(build, "HAS_TRITON", has_triton)


@pytest.mark.parametrize("gpus, name, device", [
    ((0, False), "auto", "cpu"), ((2, True), "auto", "cuda"), ((2, True), "cuda:1", "cuda:1"),
    ((2, False), "cpu", "cpu")], indirect=["gpus"])
def test_device(gpus: None, name: str, device: str) -> None:
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize("gpus, name, message", [
    ((0, True), "cuda", "device='cuda' but this machine has 0 CUDA devices"),
    ((2, True), "cuda:2", "device='cuda:2' but this machine has 2 CUDA devices"),
    ((1, False), "cuda", "device='cuda': a GPU needs Triton: pip install triton"),
    ((1, False), "auto", "device='auto': a GPU needs Triton: pip install triton, or use device='cpu'")],
    indirect=["gpus"])
def test_what_is_missing_is_named(gpus: None, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick_device(name)
