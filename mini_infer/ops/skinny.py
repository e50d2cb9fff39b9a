"""Matrix products with few rows, as decode steps have them, with their neighbours folded in.

Such a product takes as long as its weight takes to read, so the norm before it, the gate between two of them and the
residual addition after it are done on the way, and the first of its weights are on the way before the kernel before it
has ended (ops/pdl.py). Two shapes of kernel:

- one row, mostly: a block multiplies and sums on the ordinary cores, a few output features by all of K. The norm is
  folded in by (x / rms(x) * g) W = (x * g) W / rms(x): the sum of squares is collected while x streams by.
- up to 16 rows: the tensor cores take the weight as the 16-row operand and the tokens as the columns; the warps of a
  block split K between them (a batched dot), since there are too few outputs to go round. The norm is folded in where a
  block takes all of K at once; in a loop it would keep x from going to the tensor cores directly, and cost four times
  the product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.pdl import let_next_start, pdl_options, wait_for_previous

# A kernel that reads less than this lets the next one start at once. A longer one would share the memory with it for
# most of its time: a step of 8 rows of a 7B model took 2 % longer.
SHORT_BYTES = 32 << 20


@dataclass(frozen=True)
class SkinnyTile:
    """features: output features of a block; k: how much of K it takes at a time; dot: on the tensor cores, which more
    than one row needs."""

    features: int
    k: int
    warps: int
    stages: int
    dot: bool = True


# Tiles that beat the rules below, by the product's (features, K, gated) and the rows they are for at most.
TABLE = Path(__file__).parent / "tuned" / "skinny.json"
MOST_FEW_ROWS = 8


def max_skinny_rows(weight: torch.Tensor) -> int:
    """Up to how many rows `skinny_matmul` is used instead of cuBLAS on this weight [N, K].

    At 16 rows a step of Qwen3-0.6B takes 1.33 to 1.36 ms with either; at 8 it takes 0.79 ms with this.
    """
    return MOST_FEW_ROWS if weight.element_size() == 2 else 1


def choose_tile(rows: int, features: int, k: int, gated: bool) -> SkinnyTile:
    """What made decode steps shortest: by the table, which `python -m benchmarks.decode_step --write` fills, else what
    was best for most products of 0.6 to 8 billion parameters (benchmarks/LOG.md, 28, 79, 83, 84 and 101). For weights
    of two bytes."""
    if rows > MOST_FEW_ROWS:
        return SkinnyTile(32, 512, 4, 3)
    if tile := measured_tiles().get((features, k, gated, 1 if rows == 1 else MOST_FEW_ROWS)):
        return tile
    if rows == 1:
        return _one_row_tile(features, k, gated)
    if features >= 1 << 16:
        return SkinnyTile(16, 256, 2, 3)
    if k <= 1024:  # all of K at once, the norm folded in
        return SkinnyTile(16, 1024, 4, 1) if gated else SkinnyTile(32, 1024, 4, 1)
    if k <= 4096 and features <= 2048:
        return SkinnyTile(16, 2048, 8, 1) if k <= 2048 else SkinnyTile(16, 1024, 8, 3)
    return SkinnyTile(16, 256, 2, 4) if features > k and not gated else SkinnyTile(16, 512, 4, 3)


def _one_row_tile(features: int, k: int, gated: bool) -> SkinnyTile:
    if gated or features >= 1 << 16:
        size = (4, 1024, 2) if k <= 1024 else (4, 512, 2) if gated else (4, 512, 4)
    elif k <= 1024:
        size = (8, 1024, 4)
    elif k <= 4096 and features <= 2048:  # all of K at once
        size = (2, next_power_of_2(k), 4)
    else:
        size = (2, 2048, 4) if features <= k <= 4096 else (4, 512, 4)
    return SkinnyTile(*size, stages=1, dot=False)


@cache
def measured_tiles() -> dict[tuple[int, int, bool, int], SkinnyTile]:
    """The table."""
    return {tuple(product): SkinnyTile(*tile) for *product, tile in json.loads(TABLE.read_text())["tiles"]}


def skinny_matmul(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue,
                  out: torch.Tensor | None = None, tile: SkinnyTile | None = None) -> torch.Tensor:
    """x [M, K] (M at most 16, rows contiguous) times weight [N, K] (or [2N, K], gated) transposed -> [M, N].

    Sums in float32. The result goes to `out`, if given; with a residual, its memory holds the result. `tile`:
    instead of the table's choice.
    """
    rows, k = x.shape
    features, out = epilogue.num_features(weight), epilogue.place(x, weight, out)
    if tile is None and rows == 1 and weight.element_size() > 2:  # the tensor cores have no products of float32
        tile = _one_row_tile(features, k, epilogue.gated)
    tile = tile or choose_tile(rows, features, k, epilogue.gated)
    norm_weight = epilogue.norm_weight
    if norm_weight is not None and tile.dot and k > tile.k:
        x, norm_weight = rms_norm(x, norm_weight, epilogue.eps), None
    flags = dict(HAS_NORM=norm_weight is not None, HAS_BIAS=epilogue.bias is not None, GATED=epilogue.gated,
                 HAS_RESIDUAL=epilogue.residual is not None, SHORT=weight.nbytes <= SHORT_BYTES, **pdl_options(x, rows))
    grid = (cdiv(features, tile.features),)
    bias = x if epilogue.bias is None else epilogue.bias  # absent operands are never read; any pointer does
    norm_weight = x if norm_weight is None else norm_weight
    if not tile.dot:
        _one_row_kernel[grid](
            out, x, norm_weight, weight, bias, epilogue.eps, features, K=k, FEATURES=tile.features, BLOCK_K=tile.k,
            **flags, num_warps=tile.warps, num_stages=tile.stages)
    else:
        _few_rows_kernel[grid](
            out, x, norm_weight, weight, bias, epilogue.eps, features, rows, x.stride(0), K=k, FEATURES=tile.features,
            PARTS=tile.warps, BLOCK_K=tile.k // tile.warps, ROWS=8 if rows <= 8 else 16, **flags,
            num_warps=tile.warps, num_stages=tile.stages)
    return out


@triton.jit(do_not_specialize=["num_features"])
def _one_row_kernel(
    out_ptr, x_ptr, norm_ptr, weight_ptr, bias_ptr, eps, num_features,
    K: tl.constexpr, FEATURES: tl.constexpr, BLOCK_K: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SHORT: tl.constexpr, PDL: tl.constexpr,
):
    """A program: FEATURES outputs (and, gated, the FEATURES that gate them). Weights are loaded a block ahead."""
    let_next_start(PDL and SHORT)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < num_features
    weight_row = weight_ptr + feature.to(tl.int64) * K
    up_row = weight_row + num_features.to(tl.int64) * K
    weight = _weights_of_row(weight_row, mask, 0, K, BLOCK_K)
    up = weight
    if GATED:
        up = _weights_of_row(up_row, mask, 0, K, BLOCK_K)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + feature, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            bias_up = tl.load(bias_ptr + num_features + feature, mask=mask, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    if HAS_RESIDUAL:
        residual = tl.load(out_ptr + feature, mask=mask, other=0.0).to(tl.float32)
    acc = tl.zeros([FEATURES, BLOCK_K], tl.float32)
    acc_up = tl.zeros([FEATURES, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        next_weight = weight
        next_up = up
        if K > BLOCK_K:
            next_weight = _weights_of_row(weight_row, mask, start + BLOCK_K, K, BLOCK_K)
            if GATED:
                next_up = _weights_of_row(up_row, mask, start + BLOCK_K, K, BLOCK_K)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        acc += weight.to(tl.float32) * x[None, :]
        if GATED:
            acc_up += up.to(tl.float32) * x[None, :]
        weight = next_weight
        up = next_up
    let_next_start(PDL and not SHORT)
    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
    y = tl.sum(acc, axis=1) * scale
    if HAS_BIAS:
        y += bias
    if GATED:
        y_up = tl.sum(acc_up, axis=1) * scale
        if HAS_BIAS:
            y_up += bias_up
        y = y * tl.sigmoid(y) * y_up
    if HAS_RESIDUAL:
        y += residual
    tl.store(out_ptr + feature, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weights_of_row(row_ptr, mask, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """BLOCK_K weights of each feature, from `start` on; zeros behind the end."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(row_ptr[:, None] + k[None, :], mask=mask[:, None] & (k < K)[None, :], other=0.0)


@triton.jit(do_not_specialize=["num_features", "num_rows"])
def _few_rows_kernel(
    out_ptr, x_ptr, norm_ptr, weight_ptr, bias_ptr, eps, num_features, num_rows, x_stride,
    K: tl.constexpr, FEATURES: tl.constexpr, PARTS: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    SHORT: tl.constexpr, PDL: tl.constexpr,
):
    """A program: FEATURES outputs of all rows. K goes by in pieces of PARTS x BLOCK_K, a part for each warp.

    The first piece of the weights is on its way before the wait, outside the loop that Triton pipelines.
    """
    PIECE: tl.constexpr = PARTS * BLOCK_K
    tl.static_assert(PIECE >= K or not HAS_NORM, "a norm is folded in only where K is one piece")
    let_next_start(PDL and SHORT)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    mask = feature < num_features
    row = tl.arange(0, ROWS)
    row_mask = (row < num_rows)[None, None, :]
    k = tl.arange(0, PARTS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    weight_row = weight_ptr + feature.to(tl.int64)[None, :, None] * K
    up_row = weight_row + num_features.to(tl.int64) * K
    x_column = x_ptr + row[None, None, :] * x_stride
    weight = _weights_of_rows(weight_row, mask, k, K)
    up = weight
    if GATED:
        up = _weights_of_rows(up_row, mask, k, K)
    if HAS_NORM:
        norm = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + feature, mask=mask, other=0.0).to(tl.float32)[:, None]
        if GATED:
            bias_up = tl.load(bias_ptr + num_features + feature, mask=mask, other=0.0).to(tl.float32)[:, None]
    out = out_ptr + row[None, :] * num_features + feature[:, None]
    out_mask = mask[:, None] & (row < num_rows)[None, :]
    wait_for_previous(PDL)
    if HAS_RESIDUAL:
        residual = tl.load(out, mask=out_mask, other=0.0).to(tl.float32)
    x = tl.load(x_column + k[:, :, None], mask=(k < K)[:, :, None] & row_mask, other=0.0)
    if HAS_NORM:
        x32 = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(tl.sum(x32 * x32, axis=1), axis=0) / K + eps)
        x = (x32 * scale[None, None, :] * norm[:, :, None]).to(x.dtype)
    acc = tl.dot(weight, x, input_precision="ieee")
    acc_up = acc
    if GATED:
        acc_up = tl.dot(up, x, input_precision="ieee")
    for start in range(PIECE, K, PIECE):
        x = tl.load(x_column + start + k[:, :, None], mask=(start + k < K)[:, :, None] & row_mask, other=0.0)
        acc = tl.dot(_weights_of_rows(weight_row, mask, start + k, K), x, acc, input_precision="ieee")
        if GATED:
            acc_up = tl.dot(_weights_of_rows(up_row, mask, start + k, K), x, acc_up, input_precision="ieee")
    let_next_start(PDL and not SHORT)
    y = tl.sum(acc, axis=0)  # [FEATURES, ROWS]
    y_up = tl.sum(acc_up, axis=0)
    if HAS_BIAS:
        y += bias
    if GATED:
        if HAS_BIAS:
            y_up += bias_up
        y = y * tl.sigmoid(y) * y_up
    if HAS_RESIDUAL:
        y += residual
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def _weights_of_rows(row_ptr, mask, k, K: tl.constexpr):
    """The weights [PARTS, FEATURES, BLOCK_K] at columns k [PARTS, BLOCK_K]; zeros behind the end."""
    return tl.load(row_ptr + k[:, None, :], mask=mask[None, :, None] & (k < K)[:, None, :], other=0.0)
