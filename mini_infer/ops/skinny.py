"""Matrix products with few rows, as decode steps have them, with their neighbours folded in.

Such a product takes as long as its weight takes to read, so the norm before it, the gate between two of them and the
residual addition after it are done on the way. Two shapes of kernel:

- one row: a block multiplies and sums on the ordinary cores, a few output features by all of K. The norm is folded in
  by (x / rms(x) * g) W = (x * g) W / rms(x): the sum of squares is collected while x streams by.
- up to 16 rows: the tensor cores take the weight as the 16-row operand and the tokens as the columns; the warps of a
  block split K between them (a batched dot), since there are too few outputs to go round. The norm is a kernel of its
  own: folded in, it kept x from going to the tensor cores directly and cost four times the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mini_infer.ops.dispatch import tl, triton
from mini_infer.ops.norm import rms_norm


@dataclass(frozen=True)
class SkinnyTile:
    """features: output features of a block; k: how much of K it takes at a time."""

    features: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Epilogue:
    """What is folded into the product x W^T."""

    norm_weight: torch.Tensor | None = None  # [K]: x is normalised first
    eps: float = 0.0
    bias: torch.Tensor | None = None  # [N]
    gated: bool = False  # W is gate over up, [2N, K]; the result is SiLU(gate) * up
    residual: torch.Tensor | None = None  # [M, N]: added to, in place, and returned


def max_skinny_rows(weight: torch.Tensor) -> int:
    """Up to how many rows `skinny_matmul` is used instead of cuBLAS on this weight [N, K].

    At 2 to 8 rows it takes 5 to 65 % less time on o and down, and is within about 10 % either way on the others
    (benchmarks/results/skinny.json, taken with the tiles of before `choose_tile` looked at the width).
    """
    return 8 if weight.element_size() == 2 else 1


def choose_tile(rows: int, features: int, k: int, gated: bool) -> SkinnyTile:
    """Read off benchmarks/results/skinny.json: what won most often, for models of 0.6 to 8 billion parameters."""
    if rows == 1:
        return SkinnyTile(4, 1024, 4, 2) if gated or k <= 2048 else SkinnyTile(2, 2048, 4, 2)
    if rows <= 8 and features < 1 << 16:
        return SkinnyTile(16, 512, 4, 4)
    return SkinnyTile(32, 512, 4, 3)


def skinny_matmul(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue,
                  out: torch.Tensor | None = None, tile: SkinnyTile | None = None) -> torch.Tensor:
    """x [M, K] (M at most 16, rows contiguous) times weight [N, K] (or [2N, K], gated) transposed -> [M, N].

    Sums in float32. The result goes to `out`, if given; with a residual, its memory holds the result. `tile`:
    instead of the table's choice.
    """
    rows, k = x.shape
    features = weight.shape[0] // 2 if epilogue.gated else weight.shape[0]
    if epilogue.residual is not None:
        out = epilogue.residual
    elif out is None:
        out = x.new_empty(rows, features)
    tile = tile or choose_tile(rows, features, k, epilogue.gated)
    flags = dict(HAS_BIAS=epilogue.bias is not None, GATED=epilogue.gated,
                 HAS_RESIDUAL=epilogue.residual is not None)
    grid = (triton.cdiv(features, tile.features),)
    bias = x if epilogue.bias is None else epilogue.bias  # absent operands are never read; any pointer does
    norm_weight = x if epilogue.norm_weight is None else epilogue.norm_weight
    if rows == 1:
        _one_row_kernel[grid](
            out, x, norm_weight, weight, bias, epilogue.eps, features, K=k, FEATURES=tile.features, BLOCK_K=tile.k,
            HAS_NORM=epilogue.norm_weight is not None, **flags, num_warps=tile.warps, num_stages=tile.stages)
    else:
        if epilogue.norm_weight is not None:
            x = rms_norm(x, epilogue.norm_weight, epilogue.eps)
        _few_rows_kernel[grid](
            out, x, weight, bias, features, rows, x.stride(0), K=k, FEATURES=tile.features, PARTS=tile.warps,
            BLOCK_K=tile.k // tile.warps, ROWS=8 if rows <= 8 else 16, **flags, num_warps=tile.warps,
            num_stages=tile.stages)
    return out


@triton.jit(do_not_specialize=["num_features"])
def _one_row_kernel(
    out_ptr, x_ptr, norm_ptr, weight_ptr, bias_ptr, eps, num_features,
    K: tl.constexpr, FEATURES: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """A program: FEATURES outputs (and, gated, the FEATURES that gate them)."""
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < num_features
    weight_row = weight_ptr + feature.to(tl.int64)[:, None] * K
    acc = tl.zeros([FEATURES, BLOCK_K], tl.float32)
    acc_up = tl.zeros([FEATURES, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_mask = k < K
        x = tl.load(x_ptr + k, mask=k_mask, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + k, mask=k_mask, other=0.0).to(tl.float32)
        w_mask = mask[:, None] & k_mask[None, :]
        acc += tl.load(weight_row + k[None, :], mask=w_mask, other=0.0).to(tl.float32) * x[None, :]
        if GATED:
            up = tl.load(weight_row + num_features.to(tl.int64) * K + k[None, :], mask=w_mask, other=0.0)
            acc_up += up.to(tl.float32) * x[None, :]
    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
    y = tl.sum(acc, axis=1) * scale
    if HAS_BIAS:
        y += tl.load(bias_ptr + feature, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        y_up = tl.sum(acc_up, axis=1) * scale
        if HAS_BIAS:
            y_up += tl.load(bias_ptr + num_features + feature, mask=mask, other=0.0).to(tl.float32)
        y = y * tl.sigmoid(y) * y_up
    if HAS_RESIDUAL:
        y += tl.load(out_ptr + feature, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + feature, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_features", "num_rows"])
def _few_rows_kernel(
    out_ptr, x_ptr, weight_ptr, bias_ptr, num_features, num_rows, x_stride,
    K: tl.constexpr, FEATURES: tl.constexpr, PARTS: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):
    """A program: FEATURES outputs of all rows. K goes by in pieces of PARTS x BLOCK_K, a part for each warp."""
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < num_features
    row = tl.arange(0, ROWS)
    row_mask = row < num_rows
    part = tl.arange(0, PARTS)[:, None, None] * BLOCK_K
    weight_row = weight_ptr + feature.to(tl.int64)[None, :, None] * K
    acc = tl.zeros([PARTS, FEATURES, ROWS], tl.float32)
    acc_up = tl.zeros([PARTS, FEATURES, ROWS], tl.float32)
    for start in range(0, K, PARTS * BLOCK_K):
        k_of_w = start + part + tl.arange(0, BLOCK_K)[None, None, :]  # [PARTS, 1, BLOCK_K]
        k_of_x = start + part + tl.arange(0, BLOCK_K)[None, :, None]  # [PARTS, BLOCK_K, 1]
        x = tl.load(x_ptr + row[None, None, :] * x_stride + k_of_x, mask=(k_of_x < K) & row_mask[None, None, :],
                    other=0.0)
        w_mask = mask[None, :, None] & (k_of_w < K)
        w = tl.load(weight_row + k_of_w, mask=w_mask, other=0.0)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        if GATED:
            up = tl.load(weight_row + num_features.to(tl.int64) * K + k_of_w, mask=w_mask, other=0.0)
            acc_up = tl.dot(up, x, acc_up, input_precision="ieee")
    y = tl.sum(acc, axis=0)  # [FEATURES, ROWS]
    y_up = tl.sum(acc_up, axis=0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + feature, mask=mask, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if HAS_BIAS:
            y_up += tl.load(bias_ptr + num_features + feature, mask=mask, other=0.0).to(tl.float32)[:, None]
        y = y * tl.sigmoid(y) * y_up
    out = out_ptr + row[None, :] * num_features + feature[:, None]
    out_mask = mask[:, None] & row_mask[None, :]
    if HAS_RESIDUAL:
        y += tl.load(out, mask=out_mask, other=0.0).to(tl.float32)
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=out_mask)
