"""Products with few rows in CUDA C++ (cuda/few.cu), with what is folded in after them.

Optional: `make build-ext` compiles it (ops/build_cuda.py), for Hopper alone. Elsewhere cuBLAS multiplies.
"""

from __future__ import annotations

import ctypes
import json
from functools import cache
from pathlib import Path

import torch

from mini_infer.ops.cuda_library import hopper_multiprocessors, library_path, load, prepare
from mini_infer.ops.dispatch import cdiv
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.pdl import pdl_options
from mini_infer.ops.skinny import SHORT_BYTES
from mini_infer.ops.stream import HalfNormed

LIBRARY = library_path("few")
_ARGTYPES = (ctypes.c_int, ctypes.c_bool, ctypes.c_bool, *[ctypes.c_void_p] * 4, ctypes.c_bool, *[ctypes.c_int] * 3,
             ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_float, *[ctypes.c_void_p] * 3, ctypes.c_bool,
             ctypes.c_void_p)
FEWEST_ROWS, MOST_ROWS = 2, 64  # where it is chosen; it can do one
ROWS = (8, 16, 32, 64)  # of x that there are kernels for
FEATURES, SPAN = 64, 64  # rows of the weight that a cluster multiplies, and what of K at a time
BLOCKS = (1, 2, 4, 8)  # of a cluster
SMALL = 1 << 23  # weights, up to which reading them takes no longer than starting
# Blocks that beat the rule below (0: other kernels do), by the product's (features, K, gated) and rows at most.
TABLE = Path(__file__).parent / "tuned" / "few.json"


def blocks_for(rows: int, features: int, k: int, gated: bool, dtype: torch.dtype, multiprocessors: int) -> int | None:
    """How many blocks share a sum; None where it is not used.

    By the table, which `python -m benchmarks.decode_step --write` fills (three entries of 8 rows were compared in
    combination, benchmarks/LOG.md, 101); else where it made most steps shorter: products of up to 16 rows, and of small
    weights.
    """
    if dtype != torch.bfloat16 or not FEWEST_ROWS <= rows <= MOST_ROWS:
        return None
    if k % 8 or features % (FEATURES // 2 if gated else 8):
        return None
    if (blocks := measured_blocks().get((features, k, gated, next(most for most in ROWS if rows <= most)))) is not None:
        return blocks or None
    is_small = features * k * (2 if gated else 1) <= SMALL
    if features >= 1 << 16 or not (is_small and not gated if rows <= 8 else is_small or rows <= 16):
        return None
    return enough_blocks(features, k, gated, multiprocessors)


def enough_blocks(features: int, k: int, gated: bool, multiprocessors: int) -> int:
    """So many that there is a block for each multiprocessor, or as many as there can be."""
    clusters = cdiv(features, FEATURES // 2 if gated else FEATURES)
    possible = [blocks for blocks in BLOCKS if blocks == 1 or blocks * SPAN <= k]
    return next((blocks for blocks in possible if clusters * blocks >= 0.9 * multiprocessors), possible[-1])


@cache
def measured_blocks() -> dict[tuple[int, int, bool, int], int]:
    """The table."""
    return {tuple(product): blocks for *product, blocks in json.loads(TABLE.read_text())["blocks"]}


def choose_blocks(rows: int, weight: torch.Tensor, gated: bool = False) -> int | None:
    """`blocks_for` x [rows, K] and a weight [N, K] (or [2N, K], gated) on a GPU, where the kernel is built and the GPU
    runs it; else None."""
    if rows > MOST_ROWS or load(LIBRARY, "few", _ARGTYPES) is None:
        return None
    if not (multiprocessors := hopper_multiprocessors(weight.device.index)):
        return None
    features, k = weight.shape[0] // 2 if gated else weight.shape[0], weight.shape[1]
    return blocks_for(rows, features, k, gated, weight.dtype, multiprocessors)


def room_for_norm(value: torch.Tensor, norm_weight: torch.Tensor) -> HalfNormed:
    """Where `cuda_few_matmul` can begin the norm of a stream [M, N]."""
    rows, features = value.shape
    squares = torch.empty(rows, cdiv(features, FEATURES), dtype=torch.float32, device=value.device)
    return HalfNormed(norm_weight, torch.empty_like(value), squares)


def cuda_few_matmul(x: torch.Tensor | HalfNormed, weight: torch.Tensor, epilogue: Epilogue,
                    out: torch.Tensor | None = None, *, blocks: int, half: HalfNormed | None = None) -> torch.Tensor:
    """x [M, K] (M at most 64, rows contiguous) times weight [N, K] (or [2N, K], gated) transposed -> [M, N].

    All bfloat16; K, N (gated: N / 4) and the distance of x's rows multiples of 8; all begin at multiples of 16 bytes.
    Sums in float32. The result goes to `out`, if given; with a residual, its memory holds the result. Half normed, x
    is normed the other half, with the epilogue's eps. `half` takes the norm of the result, half done. Raises
    RuntimeError where the kernel is not built or cannot be launched so.
    """
    kernel = load(LIBRARY, "few", _ARGTYPES)
    if kernel is None:
        raise RuntimeError("the CUDA kernels are not built: make build-ext")
    squares: torch.Tensor | None = None
    if isinstance(x, HalfNormed):
        squares, x = x.squares, x.scaled
    elif epilogue.norm_weight is not None:
        x = rms_norm(x, epilogue.norm_weight, epilogue.eps)
    assert x.dtype == weight.dtype == torch.bfloat16, "few.cu is for bfloat16"
    prepare(LIBRARY, "few", x.device.index)
    rows, k = x.shape
    features, out = epilogue.num_features(weight), epilogue.place(x, weight, out)
    early = pdl_options(x, rows, between_early=True)["PDL"]
    next_norm = (None, None, None) if half is None else (half.norm_weight, half.scaled, half.squares)
    error = kernel(
        blocks, epilogue.gated, early, out.data_ptr(), x.data_ptr(), weight.data_ptr(), _pointer(epilogue.bias),
        epilogue.residual is not None, features, k, rows, x.stride(0), _pointer(squares),
        0 if squares is None else squares.shape[1], epilogue.eps, *map(_pointer, next_norm),
        weight.nbytes <= SHORT_BYTES,
        torch.cuda.current_stream(x.device).cuda_stream)
    if error is not None:
        raise RuntimeError(f"few.cu, {rows} rows, {tuple(weight.shape)}, {blocks} blocks: {error.decode()}")
    return out


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
