"""RMSNorm, alone or (nn/linear.py) folded into the layer that it feeds."""

from __future__ import annotations

import torch
from torch import nn

from mini_infer.nn.parameter import empty_parameter
from mini_infer.ops.stream import Stream


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.weight = empty_parameter(size, dtype=dtype)
        self.eps = eps

    def forward(self, stream: Stream) -> torch.Tensor:
        """stream [T, size] -> [T, size]. Where one of our linear layers follows, it is given the norm instead."""
        return stream.norm(self.weight, self.eps)
