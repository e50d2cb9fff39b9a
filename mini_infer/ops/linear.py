"""Matrix multiplication with a weight as checkpoints store it, [out_features, in_features]."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The form of a weight [out, in] that `linear` multiplies with fastest; use it in place of `weight`, once loaded.

    On a CPU that is oneDNN's blocked layout (an opaque tensor, the same number of bytes): a decode step's matmuls take
    0.3 to 0.7 of the time, since oneDNN otherwise rearranges the weight in every call. Elsewhere the weight itself.
    """
    if weight.device.type != "cpu" or not _onednn_runs(weight.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times weight [out, in] transposed, plus bias [out] -> [T, out], in x.dtype, summed in float32.

    `weight` is plain or comes from `pack_weight`.
    """
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _onednn_runs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32
