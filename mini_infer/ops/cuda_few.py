"""Products with 9 to 64 rows in CUDA C++ (cuda/few.cu), with what is folded in after them.

Optional: `make build-ext` compiles it (ops/build_cuda.py), for Hopper alone. Elsewhere cuBLAS multiplies.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from mini_infer.ops.cuda_library import hopper_multiprocessors, library_path, load
from mini_infer.ops.dispatch import cdiv
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.pdl import pdl_options
from mini_infer.ops.skinny import SHORT_BYTES

LIBRARY = library_path("few")
_ARGTYPES = (ctypes.c_int, ctypes.c_bool, ctypes.c_bool, *[ctypes.c_void_p] * 4, ctypes.c_bool, *[ctypes.c_int] * 3,
             ctypes.c_int64, ctypes.c_bool, ctypes.c_void_p)
FEWEST_ROWS, MOST_ROWS = 9, 64
FEATURES, SPAN = 64, 64  # rows of the weight that a cluster multiplies, and what of K at a time
BLOCKS = (1, 2, 4, 8)  # of a cluster


def blocks_for(rows: int, features: int, k: int, gated: bool, dtype: torch.dtype, multiprocessors: int) -> int | None:
    """How many blocks share a sum: so many that there is one for each multiprocessor; None where it is not used."""
    if dtype != torch.bfloat16 or not FEWEST_ROWS <= rows <= MOST_ROWS:
        return None
    if k % 8 or features % (FEATURES // 2 if gated else 8) or features >= 1 << 16:
        return None
    clusters = cdiv(features, FEATURES // 2 if gated else FEATURES)
    enough = [blocks for blocks in BLOCKS if clusters * blocks >= 0.9 * multiprocessors or blocks == BLOCKS[-1]]
    return next((blocks for blocks in reversed(BLOCKS) if blocks <= enough[0] and blocks * SPAN <= k), None)


def choose_blocks(x: torch.Tensor, weight: torch.Tensor, gated: bool) -> int | None:
    """`blocks_for` x [M, K] on a GPU and weight [N, K] (or [2N, K], gated), where the kernel is built and the GPU runs
    it; else None."""
    if load(LIBRARY, "few", _ARGTYPES) is None or not (multiprocessors := hopper_multiprocessors(x.device.index)):
        return None
    rows, k = x.shape
    features = weight.shape[0] // 2 if gated else weight.shape[0]
    return blocks_for(rows, features, k, gated, x.dtype, multiprocessors)


def cuda_few_matmul(x: torch.Tensor, weight: torch.Tensor, epilogue: Epilogue, out: torch.Tensor | None = None,
                    blocks: int = 1) -> torch.Tensor:
    """x [M, K] (M at most 64, rows contiguous) times weight [N, K] (or [2N, K], gated) transposed -> [M, N].

    All bfloat16; K, N (gated: N / 4) and the distance of x's rows multiples of 8; all begin at multiples of 16 bytes.
    Sums in float32. The result goes to `out`, if given; with a residual, its memory holds the result. Raises
    RuntimeError where the kernel is not built or cannot be launched so.
    """
    kernel = load(LIBRARY, "few", _ARGTYPES)
    if kernel is None:
        raise RuntimeError("the CUDA kernels are not built: make build-ext")
    assert x.dtype == weight.dtype == torch.bfloat16, "few.cu is for bfloat16"
    _prepare(LIBRARY, x.device.index)
    if epilogue.norm_weight is not None:
        x = rms_norm(x, epilogue.norm_weight, epilogue.eps)
    rows, k = x.shape
    features, out = epilogue.num_features(weight), epilogue.place(x, weight, out)
    error = kernel(
        blocks, epilogue.gated, pdl_options(x, rows)["PDL"], out.data_ptr(), x.data_ptr(), weight.data_ptr(),
        None if epilogue.bias is None else epilogue.bias.data_ptr(), epilogue.residual is not None, features, k, rows,
        x.stride(0), weight.nbytes <= SHORT_BYTES, torch.cuda.current_stream(x.device).cuda_stream)
    if error is not None:
        raise RuntimeError(f"few.cu, {rows} rows, {tuple(weight.shape)}, {blocks} blocks: {error.decode()}")
    return out


@cache
def _prepare(library: Path, device_index: int) -> None:
    """Load the kernels on a GPU, the current one. Raises RuntimeError where that fails."""
    prepare = load(library, "few_prepare", ())
    assert prepare is not None, "asked only where it is built"
    if (error := prepare()) is not None:
        raise RuntimeError(f"few.cu: {error.decode()}")
