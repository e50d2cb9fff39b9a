"""Products with few rows by few.cu: where it is used, and (on a GPU) what it computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mini_infer.ops import cuda_few
from mini_infer.ops.cuda_few import (
    BLOCKS,
    LIBRARY,
    ROWS,
    SPAN,
    blocks_for,
    cuda_few_matmul,
    enough_blocks,
    measured_blocks,
    room_for_norm,
)
from mini_infer.ops.epilogue import Epilogue
from mini_infer.ops.stream import HalfNormed

BF16 = torch.bfloat16


# A model of 0.6 billion parameters, and what one of 7 billion has in its place: [N, K], gated.
SMALL = {"qkv": (4096, 1024, False), "o": (1024, 2048, False), "gate and up": (3072, 1024, True),
         "down": (1024, 3072, False), "lm_head": (151936, 1024, False)}
LARGE = {"qkv": (4608, 3584, False), "o": (3584, 3584, False), "gate and up": (18944, 3584, True),
         "down": (3584, 18944, False), "lm_head": (152064, 3584, False)}


@pytest.mark.parametrize("features, k, gated, blocks", [
    (4096, 1024, False, 2), (1024, 2048, False, 8), (3072, 1024, True, 2), (1024, 3072, False, 8),
    (3584, 18944, False, 4), (18944, 3584, True, 1), (4608, 3584, False, 2), (64, 64, False, 1), (72, 128, False, 2)])
def test_a_block_for_each_multiprocessor(features: int, k: int, gated: bool, blocks: int) -> None:
    assert enough_blocks(features, k, gated, 132) == blocks


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_few, "measured_blocks", dict)

    def taken(of: dict[str, tuple[int, int, bool]], rows: int) -> set[str]:
        return {name for name, product in of.items() if blocks_for(rows, *product, BF16, 132)}

    for rows in range(66):
        few, some = 2 <= rows <= 8, 9 <= rows <= 64
        assert taken(SMALL, rows) == (
            {"qkv", "o", "down"} if few else {"qkv", "o", "down", "gate and up"} if some else set())
        assert taken(LARGE, rows) == ({"qkv", "o", "down", "gate and up"} if 9 <= rows <= 16 else set())


def test_the_table_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_few, "measured_blocks", lambda: {(4096, 1024, False, 16): 4, (4096, 1024, False, 32): 0,
                                                              (3584, 18944, False, 64): 2})
    found = [blocks_for(rows, 4096, 1024, False, BF16, 132) for rows in (8, 9, 16, 17, 32, 33)]
    assert found == [2, 4, 4, None, None, 2]
    assert blocks_for(64, 3584, 18944, False, BF16, 132) == 2
    assert blocks_for(65, 3584, 18944, False, BF16, 132) is None


def test_the_table_is_well_formed() -> None:
    for (features, k, gated, most_rows), blocks in measured_blocks().items():
        assert most_rows in ROWS and blocks in (0, *BLOCKS) and blocks * SPAN <= k
        assert features % (32 if gated else 8) == 0 and k % 8 == 0


def test_what_the_kernel_cannot_do_is_not_chosen() -> None:
    assert blocks_for(0, 4096, 1024, False, BF16, 132) is blocks_for(65, 4096, 1024, False, BF16, 132) is None
    assert blocks_for(16, 4096, 1024, False, torch.float16, 132) is None
    assert blocks_for(16, 4097, 1024, False, BF16, 132) is blocks_for(16, 4096, 1023, False, BF16, 132) is None
    assert blocks_for(16, 4104, 1024, True, BF16, 132) is None


def needs_the_kernel() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("few.cu is for Hopper alone")
    if not LIBRARY.exists():
        pytest.skip("the CUDA kernels are not built: make build-ext")


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 31, 33, 64])
@pytest.mark.parametrize("features, k", [(4096, 1024), (1024, 2048), (96, 72), (3584, 3584), (32, 64), (352, 8)])
@pytest.mark.parametrize("kind", [
    "plain", "bias", "residual", "bias and residual", "gated", "gated, bias", "norm", "norm, gated, bias",
    "half normed", "half normed, gated, bias"])
def test_products(rows: int, features: int, k: int, kind: str) -> None:
    needs_the_kernel()
    torch.manual_seed(rows)
    gated = "gated" in kind
    x = torch.randn(rows, 2 * k, dtype=BF16, device="cuda")[:, :k]
    weight = torch.randn(features * (2 if gated else 1), k, dtype=BF16, device="cuda") / k**0.5
    bias = torch.randn(len(weight), dtype=BF16, device="cuda") if "bias" in kind else None
    residual = torch.randn(rows, features, dtype=BF16, device="cuda") if "residual" in kind else None
    norm_weight = torch.rand(k, dtype=BF16, device="cuda") + 0.5 if "norm" in kind else None
    rows_in = x.double()
    if norm_weight is not None:
        rows_in = rows_in * (rows_in.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm_weight.double()
    want = rows_in @ weight.double().T + (0 if bias is None else bias.double())
    if gated:
        gate, up = want.chunk(2, -1)
        want = F.silu(gate) * up
    if residual is not None:
        want += residual.double()
    half, of = "half" in kind, x
    if half and norm_weight is not None:
        squares = x.float().square().view(rows, -1, 8).sum(-1)
        of = HalfNormed(norm_weight, x * norm_weight, squares)
    for blocks in BLOCKS:
        if blocks * 64 > max(k, 64):
            continue
        given = None if residual is None else residual.clone()
        out = torch.full((rows + 2, features), float("nan"), dtype=BF16, device="cuda")
        epilogue = Epilogue(norm_weight=None if half else norm_weight, eps=1e-6, bias=bias, gated=gated, residual=given)
        begun = room_for_norm(out[1:-1], torch.rand(features, dtype=BF16, device="cuda")) if not gated else None
        got = cuda_few_matmul(of, weight, epilogue, out[1:-1] if residual is None else None, blocks=blocks, half=begun)
        assert (got.double() - want).norm() / want.norm() < 5e-3, blocks
        if residual is None:
            assert out[0].isnan().all() and out[-1].isnan().all()
        assert torch.equal(got, cuda_few_matmul(
            of, weight, replace(epilogue, residual=None if residual is None else residual.clone()),
            blocks=blocks)), "the same every time"
        if begun is not None:
            assert torch.equal(begun.scaled, got * begun.norm_weight)
            torch.testing.assert_close(begun.squares.sum(-1), got.float().square().sum(-1))


@pytest.mark.gpu
def test_what_it_refuses() -> None:
    needs_the_kernel()
    x, weight = torch.zeros(16, 64, dtype=BF16, device="cuda"), torch.zeros(64, 64, dtype=BF16, device="cuda")
    with pytest.raises(RuntimeError, match="blocks must be"):
        cuda_few_matmul(x, weight, Epilogue(), blocks=3)
    with pytest.raises(RuntimeError, match="rows must be"):
        cuda_few_matmul(x.repeat(5, 1), weight, Epilogue(), blocks=1)
