"""RMSNorm against its formula in float64 and against transformers'."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import norm

SHAPES = pytest.mark.parametrize(
    "shape", [(1, 384), (5, 100), (3, 3584), (33, 64), (2, 3, 80), (1, 1), (0, 64)], ids=str)
EPS = 1e-5


def formula(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


@SHAPES
def test_reference(assert_close, dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    assert_close(norm._rms_norm_torch(x, weight, EPS), formula(x, weight))


@pytest.mark.parametrize("seed", range(3))
def test_reference_is_transformers(seed):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(seed)
    module = llama.LlamaRMSNorm(48, eps=EPS)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(7, 48) * 10
    torch.testing.assert_close(norm._rms_norm_torch(x, module.weight.detach(), EPS), module(x).detach())


@SHAPES
def test_triton(assert_close, device, dtype, shape):
    x, weight = torch.randn(shape).to(dtype).to(device), torch.randn(shape[-1]).to(dtype).to(device)
    out = norm._rms_norm_triton(x, weight, EPS)
    assert out.shape == x.shape and out.dtype == dtype
    assert_close(out, formula(x, weight))


def test_triton_takes_strided_rows(assert_close, device):
    x, weight = torch.randn(6, 10, 64, device=device)[:, 2:5], torch.randn(64, device=device)
    assert_close(norm._rms_norm_triton(x, weight, EPS), formula(x, weight))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 384), (5, 100), (33, 64), (2, 3584), (0, 64)], ids=str)
def test_triton_adds_parts_first(assert_close, device, dtype, shape, parts):
    x, weight = torch.randn(shape).to(dtype).to(device), torch.randn(shape[-1]).to(dtype).to(device)
    added = torch.randn(parts, *shape, device=device)
    want = (x + added.sum(0)).to(dtype)
    out = norm._rms_norm_triton(x, weight, EPS, added)
    assert_close(x, want.double())
    assert_close(out, formula(x, weight))
