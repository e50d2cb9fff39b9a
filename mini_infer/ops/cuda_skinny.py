"""The products of ops/skinny.py in CUDA C++ (cuda/skinny.cu), for the shapes where that is the fastest there is.

Optional: `make build-ext` compiles it (ops/build_cuda.py). Where that was not done, nothing here is used. The driver
loads a kernel when it is first launched, which must not be while a graph is captured: every step that becomes a graph
has been run before (engine/rehearsal.py). With as many rows as it is chosen for no kernel starts early (ops/pdl.py); it
could, as in tests and benchmarks with fewer.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from mini_infer.ops.cuda_library import library_path, load
from mini_infer.ops.dispatch import is_hopper
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.pdl import pdl_options
from mini_infer.ops.skinny import SHORT_BYTES

LIBRARY = library_path("skinny")
_ARGTYPES = (*[ctypes.c_int] * 5, *[ctypes.c_void_p] * 5, ctypes.c_int, ctypes.c_float, *[ctypes.c_int] * 3,
             ctypes.c_int64, ctypes.c_int, ctypes.c_void_p)
FEWEST_ROWS, MOST_ROWS = 9, 16  # where it is chosen; it can do fewer


@dataclass(frozen=True)
class CudaTile:
    """tiles: 16 rows of the weight each, of a block; warps: side by side along K; unroll: by 32 of K, what each of them
    takes at a time."""

    tiles: int
    warps: int
    unroll: int

    @property
    def can_gate(self) -> bool:
        """A gated product takes two tiles: one of gates, one of what they gate."""
        return self.tiles == 2


TILES = (CudaTile(2, 16, 2), CudaTile(2, 8, 2), CudaTile(1, 16, 4), CudaTile(1, 4, 4))  # that skinny.cu is compiled for


def tile_for(rows: int, features: int, k: int, gated: bool, dtype: torch.dtype) -> CudaTile | None:
    """The fastest tile where the kernel makes whole steps at least 5 % shorter (benchmarks/decode_step.py, an H200);
    else None."""
    if dtype != torch.bfloat16 or not FEWEST_ROWS <= rows <= MOST_ROWS or k % 32:
        return None
    # A small weight is read in less time than a pipeline takes to fill: there these registers full of it, asked for at
    # once, win, as do the norm, gate and residual that cuBLAS would need kernels for. With fewer rows Triton's blocks,
    # a quarter as large, leave room for the next kernel to start early; a large weight takes the time of reading it.
    if features >= 1 << 16 and k <= 1024 and not gated:  # a small model's output layer
        return CudaTile(1, 4, 4)
    if features * k > 1 << 22:
        return None
    if gated:
        return CudaTile(2, 8, 2)
    return CudaTile(1, 16, 4) if features <= 2048 and k <= 2048 else CudaTile(2, 16, 2)


def choose_tile(x: torch.Tensor, weight: torch.Tensor, gated: bool) -> CudaTile | None:
    """`tile_for` x [M, K] on a GPU and weight [N, K] (or [2N, K], gated), where the kernel is built and the GPU runs
    it; else None."""
    rows, k = x.shape
    if rows > MOST_ROWS or not is_hopper(x.device.index) or load(LIBRARY, "skinny", _ARGTYPES) is None:
        return None
    return tile_for(rows, weight.shape[0] // 2 if gated else weight.shape[0], k, gated, x.dtype)


def cuda_skinny_matmul(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue,
                       out: torch.Tensor | None = None, tile: CudaTile | None = None) -> torch.Tensor:
    """x [M, K] (M at most 16, rows contiguous) times weight [N, K] (or [2N, K], gated) transposed -> [M, N].

    All bfloat16, K a multiple of 32, and x, its rows, the norm's weight and `weight` begin at multiples of 16 bytes.
    Sums in float32. The result goes to `out`, if given; with a residual, its memory holds the result. `tile`: one of
    TILES instead of the table's choice. Raises RuntimeError where the kernel is not built or cannot be launched so.
    """
    kernel = load(LIBRARY, "skinny", _ARGTYPES)
    if kernel is None:
        raise RuntimeError("the CUDA kernels are not built: make build-ext")
    assert x.dtype == weight.dtype == torch.bfloat16, "skinny.cu is for bfloat16"
    rows, k = x.shape
    features, out = epilogue.num_features(weight), epilogue.place(x, weight, out)
    tile = tile or tile_for(rows, features, k, epilogue.gated, x.dtype) or CudaTile(2, 8, 2)
    norm, bias = epilogue.norm_weight, epilogue.bias
    error = kernel(
        tile.tiles, tile.warps, tile.unroll, epilogue.gated, pdl_options(x, rows)["PDL"], out.data_ptr(), x.data_ptr(),
        None if norm is None else norm.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        epilogue.residual is not None, epilogue.eps, features, k, rows, x.stride(0), weight.nbytes <= SHORT_BYTES,
        torch.cuda.current_stream(x.device).cuda_stream)
    if error is not None:
        raise RuntimeError(f"skinny.cu, {rows} rows, {tuple(weight.shape)}, {tile}: {error.decode()}")
    return out
