"""The gate of a gated MLP: SiLU(gate) * up, with gate and up side by side as one matmul left them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mini_infer.ops import native
from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton
from mini_infer.ops.pdl import let_next_start, pdl_options, wait_for_previous


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x [T, 2I], gate | up, contiguous -> SiLU(gate) * up, [T, I], in x.dtype (Shazeer 2020, arXiv:2002.05202)."""
    if use_triton(x):
        return _silu_and_mul_triton(x)
    return (native.silu_and_mul if native.use_native(x, x.numel()) else _silu_and_mul_torch)(x)


def _silu_and_mul_torch(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _silu_and_mul_triton(x: torch.Tensor) -> torch.Tensor:
    num_rows, dim = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_rows, dim)
    block = min(1024, next_power_of_2(dim))
    if num_rows:
        grid = (num_rows, cdiv(dim, block))
        _silu_and_mul_kernel[grid](x, out, DIM=dim, BLOCK=block, **pdl_options(x, num_rows))
    return out


@triton.jit
def _silu_and_mul_kernel(x_ptr, out_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A program makes BLOCK elements of one row."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < DIM
    gate = tl.load(x_ptr + row * 2 * DIM + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * DIM + DIM + column, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * DIM + column, out.to(out_ptr.dtype.element_ty), mask=mask)
