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

    def num_features(self, weight: torch.Tensor) -> int:
        """N, of a weight [N, K] or, gated, [2N, K]."""
        return weight.shape[0] // 2 if self.gated else weight.shape[0]

    def place(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """Where the result [M, N] goes: over the residual, to `out` if given, or to a new tensor."""
        if self.residual is not None:
            return self.residual
        return x.new_empty(x.shape[0], self.num_features(weight)) if out is None else out
