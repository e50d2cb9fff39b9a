"""RMSNorm, alone or fused with the addition of the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from mini_infer.nn.linear import empty_parameter
from mini_infer.ops.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype)
        self.eps = eps

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Add x [T, H] to the residual stream (in place), then normalise it -> (normed, residual).

        Where there is no stream yet, x (the embeddings) becomes it.
        """
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return add_rms_norm(x, residual, self.weight, self.eps)
