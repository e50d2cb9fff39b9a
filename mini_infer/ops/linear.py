"""Matrix multiplication with a weight as checkpoints store it, [out_features, in_features]."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times weight [out, in] transposed, plus bias [out] -> [T, out], in x.dtype, summed in float32.

    cuBLAS on a GPU, oneDNN on a CPU: both read this layout as it is.
    """
    return F.linear(x, weight, bias)
