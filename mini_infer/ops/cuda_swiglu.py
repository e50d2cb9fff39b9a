"""SiLU(x G^T) * (x U^T), the first half of a gated MLP, as one kernel in CUDA C++ (cuda/swiglu.cu), from 9 rows on.

Optional: `make build-ext` compiles it (ops/build_cuda.py), for Hopper alone. Where that was not done, cuBLAS multiplies
and a second kernel applies the gate, which writes and reads 2N elements a row more. The kernels are loaded when a tile
is first asked for, which is in the rehearsal of an engine's start (engine/rehearsal.py).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

from mini_infer.ops.cuda_library import hopper_multiprocessors, library_path, load, prepare
from mini_infer.ops.dispatch import cdiv

LIBRARY = library_path("swiglu")
_ARGTYPES = (ctypes.c_int, ctypes.c_int, ctypes.c_bool, *[ctypes.c_void_p] * 3, *[ctypes.c_int] * 4, ctypes.c_void_p)
# A tile takes its time however much of it is needed, so the second kernel's time is saved only where most of it is: on
# an H200 shares from 0.90 on were even or won up to 9 %, 0.88 and less lost mostly (benchmarks/LOG.md, 66 and 74), as
# did 192 x 192 with shared weights beyond 384 rows (up to 15 %), whatever its share (results/swiglu.json).
LEAST_USED = 0.90
# Up to so many rows a tile's time is mostly that of reading its weights, so that with fewer little is wasted.
FREE_ROWS = 192
FEWEST_ROWS = 9  # fewer are the matter of ops/skinny.py, whose kernels start early
# Elements of a weight, and products. Less than both takes a few microseconds, most of them to get started, where
# cuBLAS is quicker.
LEAST_WEIGHT, LEAST_WORK = 1 << 25, 1 << 33
TIE = 0.02  # in the share; then the earlier tile is used, which draws less out of the L2 cache


@dataclass(frozen=True)
class Tile:
    """rows: of x; width: rows of the weight, half of them gates; shares_x: the tiles of a pair (two blocks of a cluster
    compute them side by side) have their rows of x in common, else their rows of the weight."""

    rows: int
    width: int
    shares_x: bool

    def used(self, rows: int, features: int, clusters: int) -> float:
        """What share of the work is wanted, when so many clusters take pair after pair: tiles reach beyond the
        result, and in the last round there may not be a pair for each cluster."""
        row_tiles, column_tiles = cdiv(rows, self.rows), cdiv(2 * features, self.width)
        pairs = row_tiles * cdiv(column_tiles, 2) if self.shares_x else cdiv(row_tiles, 2) * column_tiles
        wanted = max(rows, FREE_ROWS) * 2 * features
        return wanted / (cdiv(pairs, clusters) * clusters * 2 * max(self.rows, FREE_ROWS) * self.width)

    def suits(self, rows: int) -> bool:
        """Whether it draws little enough out of the L2 cache: a low tile needs its weights once more for each further
        row of tiles, or for each further two that share them."""
        return self.rows >= 256 or rows <= self.rows * (1 if self.shares_x else 2)


# That swiglu.cu is compiled for. Widths between the usual 128 and 256 divide the work evenly where those would leave a
# third of the GPU idle in the last round: 37,888 x 256 by 144 x 256 is 2 rounds of 132 blocks.
TILES = (*[Tile(rows, width, True) for rows in (64, 128, 192) for width in (144, 192, 224)],
         *[Tile(256, width, True) for width in (192, 144, 112)], Tile(192, 192, False), Tile(192, 224, False))


@cache
def tile_for(rows: int, features: int, k: int, dtype: torch.dtype, multiprocessors: int) -> Tile | None:
    """The tile that wastes the least, if that is little enough; else None."""
    weight = 2 * features * k
    if dtype != torch.bfloat16 or features % 8 or k % 8 or rows < FEWEST_ROWS:
        return None
    if weight < LEAST_WEIGHT and rows * weight < LEAST_WORK:
        return None
    used = {tile: tile.used(rows, features, multiprocessors // 2) for tile in TILES if tile.suits(rows)}
    enough = max(LEAST_USED, max(used.values()) - TIE)
    return next((tile for tile in used if used[tile] >= enough), None)


def choose_tile(x: torch.Tensor, weight: torch.Tensor) -> Tile | None:
    """`tile_for` x [M, K] on a GPU and weight [2N, K], where the kernel is built and the GPU runs it; else None."""
    if load(LIBRARY, "swiglu", _ARGTYPES) is None or not (multiprocessors := hopper_multiprocessors(x.device.index)):
        return None
    prepare(LIBRARY, "swiglu", x.device.index)
    return tile_for(x.shape[0], weight.shape[0] // 2, x.shape[1], x.dtype, multiprocessors)


def cuda_swiglu(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x [M, K] and weight [2N, K], gates over what they gate -> SiLU(gate) * up [M, N], rounded once.

    All bfloat16, dense, and beginning at multiples of 16 bytes, on the current device; N and K multiples of 8. Sums in
    float32. Raises RuntimeError where the kernel is not built or cannot be launched so.
    """
    kernel = load(LIBRARY, "swiglu", _ARGTYPES)
    if kernel is None:
        raise RuntimeError("the CUDA kernels are not built: make build-ext")
    assert x.dtype == weight.dtype == torch.bfloat16 and x.is_contiguous() and weight.is_contiguous()
    prepare(LIBRARY, "swiglu", x.device.index)
    rows, k = x.shape
    out = x.new_empty(rows, weight.shape[0] // 2)
    error = kernel(tile.rows, tile.width, tile.shares_x, out.data_ptr(), x.data_ptr(), weight.data_ptr(), rows,
                   out.shape[1], k, hopper_multiprocessors(x.device.index),
                   torch.cuda.current_stream(x.device).cuda_stream)
    if error is not None:
        raise RuntimeError(f"swiglu.cu, {rows} rows, {tuple(weight.shape)}, {tile}: {error.decode()}")
    return out
