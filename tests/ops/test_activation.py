"""SiLU(gate) * up against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import activation

SHAPES = pytest.mark.parametrize("shape", [(1, 2048), (5, 14), (3, 5000), (0, 8), (17, 2)], ids=str)


def formula(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


@SHAPES
def test_reference(assert_close, dtype, shape):
    x = torch.randn(shape).to(dtype) * 3
    before = x.clone()
    assert_close(activation._silu_and_mul_torch(x), formula(x))
    assert torch.equal(x, before)


@SHAPES
def test_triton(assert_close, device, dtype, shape):
    x = (torch.randn(shape) * 3).to(dtype).to(device)
    out = activation._silu_and_mul_triton(x)
    assert out.dtype == dtype
    assert_close(out, formula(x))


def test_triton_of_extreme_gates(device):
    x = torch.tensor([[-1e4, 1e4, -88.0, 1.0, 1.0, 1.0]], device=device)
    torch.testing.assert_close(activation._silu_and_mul_triton(x), activation._silu_and_mul_torch(x.cpu()).to(device))
