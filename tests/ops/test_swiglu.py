"""The gated product of more than a few rows in CUDA C++: what it computes (on a GPU), and where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.ops import cuda_swiglu, linear
from mini_infer.ops.activation import silu_and_mul
from mini_infer.ops.cuda_swiglu import (
    FEWEST_ROWS,
    LEAST_USED,
    LEAST_WEIGHT,
    LEAST_WORK,
    LIBRARY,
    TIE,
    TILES,
    Tile,
    choose_tile,
    tile_for,
)
from mini_infer.ops.cuda_swiglu import cuda_swiglu as multiply
from mini_infer.ops.norm import rms_norm
from mini_infer.ops.stream import Stream

BF16 = torch.bfloat16
SMS = 132  # of an H200
# [M, N, K]: whole tiles, and ends in each direction that no tile or step of K divides.
SHAPES = [(256, 1152, 512), (1, 8, 8), (200, 1000, 520), (700, 3072, 1024), (513, 600, 72), (257, 80, 200),
          (1000, 18944, 136)]


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_gpu(shape: tuple[int, int, int], tile: Tile) -> None:
    needs_the_kernel()
    rows, features, k = shape
    torch.manual_seed(rows + features)
    # Large gates saturate, and nothing may be read from beyond the operands: what lies there is not a number.
    x = guarded(torch.randn(rows, k, device="cuda") * 3)
    weight = guarded(torch.randn(2 * features, k, device="cuda") / k**0.5)
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    want = F.silu(gate) * up
    got = multiply(x, weight, tile)
    assert got.shape == (rows, features) and got.isfinite().all()
    assert (got.double() - want).norm() / want.norm() < 4e-3
    assert torch.equal(got, multiply(x, weight, tile))


@pytest.mark.gpu
def test_gates_of_any_size() -> None:
    """Where e^-gate overflows and where it is nothing."""
    needs_the_kernel()
    gates = torch.tensor([-1e30, -1000.0, -100.0, -88.0, -20.0, 0.0, 20.0, 100.0], dtype=BF16, device="cuda")
    x = torch.eye(8, dtype=BF16, device="cuda")
    for up in (1.0, 1e20):
        weight = torch.cat((gates.diag(), torch.eye(8, dtype=BF16, device="cuda") * up))
        got = multiply(x, weight, TILES[0]).diagonal()
        want = F.silu(gates.float()) * weight[8:].diagonal().float()
        assert torch.allclose(got.float(), want, rtol=1e-2, atol=1e-6 * up)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [9, 64, 100, 192, 256, 384, 2048])
def test_norm_swiglu_takes_it(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A layer of a 7B model: the same within rounding as with two kernels."""
    needs_the_kernel()
    monkeypatch.setattr(linear.cuda_few, "choose_blocks", lambda *_, **__: None)  # which may be faster yet
    torch.manual_seed(rows)
    x, norm = torch.randn(rows, 3584, dtype=BF16, device="cuda"), torch.ones(3584, dtype=BF16, device="cuda")
    weight = torch.randn(2 * 18944, 3584, dtype=BF16, device="cuda") / 60
    tile = choose_tile(x, weight)
    if tile is None:
        pytest.skip("this GPU has another number of multiprocessors, which these shapes do not fill")
    got = linear.norm_swiglu(Stream(x), norm, 1e-6, weight, None)
    assert torch.equal(got, multiply(rms_norm(x, norm, 1e-6), weight, tile))
    monkeypatch.setattr(cuda_swiglu, "LIBRARY", Path("none"))
    want = linear.norm_swiglu(Stream(x), norm, 1e-6, weight, None)
    assert not torch.equal(got, want) and (got.double() - want.double()).norm() / want.double().norm() < 5e-3


def needs_the_kernel() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("swiglu.cu is for Hopper alone")
    if not LIBRARY.exists():
        pytest.skip("the CUDA kernels are not built: make build-ext")


def guarded(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix in bfloat16, within memory that is full of NaN."""
    around = torch.full((matrix.numel() + 2048,), float("nan"), dtype=BF16, device="cuda")
    inside = around[1024 : 1024 + matrix.numel()].view(matrix.shape)
    inside.copy_(matrix)
    return inside


@pytest.mark.parametrize("features, k, tiles", [
    (18944, 3584, {9: Tile(64, 144, True), 64: Tile(64, 144, True), 128: Tile(128, 144, True),
                   192: Tile(192, 144, True), 208: None, 224: None, 240: Tile(256, 144, True),
                   256: Tile(256, 144, True), 320: None, 384: Tile(192, 192, False), 512: Tile(256, 192, True),
                   8192: Tile(256, 192, True)}),
    (12288, 4096, {64: Tile(64, 192, True), 128: Tile(128, 192, True), 192: Tile(192, 192, True), 224: None,
                   256: Tile(256, 192, True), 320: None, 384: Tile(192, 192, False), 8192: Tile(256, 192, True)}),
    (14336, 4096, {64: Tile(64, 224, True), 128: Tile(128, 224, True), 192: Tile(192, 224, True), 208: None,
                   256: Tile(256, 112, True), 384: Tile(192, 224, False), 2048: Tile(256, 112, True),
                   8192: Tile(256, 192, True)}),
    (3072, 1024, {64: None, 256: None, 512: None, 2048: Tile(256, 192, True), 8192: Tile(256, 192, True)}),
])
def test_models_that_were_measured(features: int, k: int, tiles: dict[int, Tile | None]) -> None:
    """The tiles that won, and where cuBLAS did (benchmarks/results/swiglu.json, LOG.md 74)."""
    assert {rows: tile_for(rows, features, k, BF16, SMS) for rows in tiles} == tiles
    assert tile_for(8, features, k, BF16, SMS) is None


@given(st.integers(1, 20_000), st.integers(1, 5000), st.integers(1, 1000), st.sampled_from([78, 114, 132]))
def test_what_is_chosen_wastes_little(rows: int, eights: int, k: int, multiprocessors: int) -> None:
    tile = tile_for(rows, 8 * eights, 8 * k, BF16, multiprocessors)
    shares = {each: each.used(rows, 8 * eights, multiprocessors // 2) for each in TILES if each.suits(rows)}
    assert all(0 < share <= 1 for share in shares.values())
    small = 16 * eights * 8 * k < LEAST_WEIGHT and rows * 16 * eights * 8 * k < LEAST_WORK
    assert (tile is None) == (rows < FEWEST_ROWS or small or max(shares.values()) < LEAST_USED)
    assert tile is None or (tile.suits(rows) and shares[tile] >= max(LEAST_USED, max(shares.values()) - TIE))


def test_what_the_kernel_cannot_do_is_not_chosen() -> None:
    assert tile_for(2048, 18944, 3584, torch.float16, SMS) is None
    assert tile_for(2048, 18944, 3588, BF16, SMS) is None
    assert tile_for(2048, 18948, 3584, BF16, SMS) is None


def test_nothing_is_used_that_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_swiglu, "LIBRARY", tmp_path / "none.so")
    x, weight = torch.zeros(256, 4096, dtype=BF16), torch.zeros(24576, 4096, dtype=BF16)
    assert choose_tile(x, weight) is None
    with pytest.raises(RuntimeError, match="make build-ext"):
        multiply(x, weight, TILES[0])


@pytest.mark.parametrize("built, gpu, taken", [(True, 132, True), (True, 0, False), (False, 132, False)])
def test_dispatch(monkeypatch: pytest.MonkeyPatch, built: bool, gpu: int, taken: bool) -> None:
    called = []
    monkeypatch.setattr(cuda_swiglu, "load", lambda *_: (lambda: None) if built else None)
    monkeypatch.setattr(cuda_swiglu, "prepare", lambda *_: None)
    monkeypatch.setattr(cuda_swiglu, "hopper_multiprocessors", lambda index: gpu)
    monkeypatch.setattr(cuda_swiglu, "cuda_swiglu", lambda x, weight, tile: called.append(tile) or x)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(linear, "_skinny", lambda *_, **__: None)
    monkeypatch.setattr(linear, "linear", lambda x, weight, bias: F.linear(x, weight, bias))
    monkeypatch.setattr(linear, "silu_and_mul", lambda x: x)
    x, norm = torch.zeros(256, 2048, dtype=BF16), torch.ones(2048, dtype=BF16)
    weight, bias = torch.empty(24576, 2048, dtype=BF16), torch.zeros(24576, dtype=BF16)
    monkeypatch.setattr(Stream, "norm", lambda stream, *_: stream.value)
    linear.norm_swiglu(Stream(x), norm, 1e-6, weight, None)
    linear.norm_swiglu(Stream(x), norm, 1e-6, weight, bias)  # it adds none
    linear.norm_swiglu(Stream(x[:220]), norm, 1e-6, weight, None)  # it would waste more than it saves
    assert called == [Tile(256, 192, True)] * taken


def test_reference_is_the_plain_one() -> None:
    """What the kernel fuses is what the two ops do."""
    x, weight = torch.randn(4, 8), torch.randn(16, 8)
    gate, up = F.linear(x, weight).chunk(2, -1)
    assert torch.allclose(linear.norm_swiglu(Stream(x), torch.ones(8), 0.0, weight, None),
                          silu_and_mul(F.linear(F.rms_norm(x, (8,), eps=0.0), weight)), atol=1e-5)
    assert torch.allclose(F.silu(gate) * up, silu_and_mul(F.linear(x, weight)), atol=1e-5)
