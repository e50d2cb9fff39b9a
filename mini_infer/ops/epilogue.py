"""What a product with few rows does on the way, so that its neighbours need no kernel of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Epilogue:
    """What is folded into the product x W^T."""

    norm_weight: torch.Tensor | None = None  # [K]: x is normalised first
    eps: float = 0.0
    bias: torch.Tensor | None = None  # [N]
    gated: bool = False  # W is gate over up, [2N, K]; the result is SiLU(gate) * up
    residual: torch.Tensor | None = None  # [M, N]: added to, in place, and returned
