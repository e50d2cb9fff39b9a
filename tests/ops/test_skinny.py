"""Skinny products with everything folded in, against the same written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.skinny import MOST_FEW_ROWS, SkinnyTile, measured_tiles, skinny_matmul

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
EPS = 1e-6
# The interpreter multiplies bfloat16 matrices as raw bits, so that dtype is for the GPU.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if ON_GPU else [])
SHAPES = [(1, 40, 96), (1, 33, 2100), (2, 24, 128), (5, 40, 1100), (8, 2100, 1100), (9, 17, 96), (16, 24, 64)]
if ON_GPU:
    SHAPES += [(1, 6144, 1024), (1, 3584, 18944), (1, 152064, 3584), (1, 4096, 4096), (1, 6144, 4096),
               (1, 14336, 4096), (2, 18944, 3584), (8, 3072, 1024), (8, 1024, 2048), (8, 14336, 4096), (16, 1024, 3072)]


def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32, device=DEVICE).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    if shape[0] > 1 and dtype == torch.float32:
        pytest.skip("several rows of float32 go to cuBLAS")
    check(shape, dtype)


def test_table_is_well_formed() -> None:
    for (_, k, _, most_rows), tile in measured_tiles().items():
        assert most_rows in (1, MOST_FEW_ROWS) and (tile.dot or most_rows == 1)
        assert all(size & (size - 1) == 0 for size in (tile.features, tile.k, tile.warps)) and k > tile.k // 2


@pytest.mark.parametrize("tile", [SkinnyTile(16, 64, 2, 1), SkinnyTile(4, 64, 2, 1, dot=False)], ids=str)
def test_one_row_on_either_kind_of_cores(tile: SkinnyTile) -> None:
    for shape in ((1, 40, 64), (1, 33, 200)):
        check(shape, torch.float16, partial(skinny_matmul, tile=tile))


@pytest.mark.skipif(ON_GPU, reason="the interpreter's part")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, dtype)


def check(shape: tuple[int, int, int], dtype: torch.dtype,
          multiply: Callable[..., torch.Tensor] = skinny_matmul) -> None:
    rows, features, k = shape
    torch.manual_seed(rows * features + k)
    kinds = [(0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 0, 0, 1)]
    for norm, bias, gated, residual in kinds:
        x, weight = draw(rows, k, dtype=dtype), draw(features * (1 + gated), k, dtype=dtype) / k**0.5
        norm_weight = 1 + draw(k, dtype=dtype) / 10 if norm else None
        bias_vector = draw(weight.shape[0], dtype=dtype) if bias else None
        stream = draw(rows, features, dtype=dtype) if residual else None
        want = x.double()
        if norm_weight is not None:
            want = want * torch.rsqrt(want.square().mean(-1, keepdim=True) + EPS) * norm_weight.double()
        want = want @ weight.double().T
        if bias_vector is not None:
            want = want + bias_vector.double()
        if gated:
            gate, up = want.chunk(2, -1)
            want = F.silu(gate) * up
        if stream is not None:
            want = want + stream.double()
        epilogue = Epilogue(norm_weight, EPS, bias_vector, bool(gated), stream)
        poisoned = torch.full((rows, features), float("nan"), dtype=dtype, device=DEVICE)
        got = multiply(x, weight, epilogue, poisoned)
        error = (got.double() - want).norm() / want.norm()
        assert error < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
        assert got.data_ptr() == (poisoned if stream is None else stream).data_ptr()
