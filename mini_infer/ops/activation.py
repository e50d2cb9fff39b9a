"""The gate of a gated MLP: SiLU(gate) * up, with gate and up side by side as one matmul left them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x [T, 2I], gate | up -> SiLU(gate) * up, [T, I], in x.dtype (Shazeer 2020, arXiv:2002.05202)."""
    return _silu_and_mul_torch(x)


def _silu_and_mul_torch(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
