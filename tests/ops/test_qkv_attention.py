"""Attention straight from QKV against its parts: the same output, and the same keys and values in the caches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_infer.config import RopeConfig
from mini_infer.ops import attention_split
from mini_infer.ops.inputs import Shared
from mini_infer.ops.qkv_attention import qkv_attention
from mini_infer.ops.rope import cos_sin_table

EPS = 1e-6
SEQUENCES = [(1, 5), (1, 200), (1, 0), (1, 63), (1, 64), (1, 129)]


@pytest.mark.parametrize("tile", ["one tile", "loop", "small"])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("shape", [((4, 2), 128), ((7, 1), 80), ((3, 3), 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_split_kernel_from_qkv(monkeypatch, paged_case, device, dtype, shape, norm, window, tile):
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 matrices as raw bits")
    if device.type == "cpu" and (window is None) == norm:
        pytest.skip("half of the cases are enough where they take long")
    one_tile, small_tile = tile == "one tile", tile == "small"
    if not one_tile:
        monkeypatch.setattr(attention_split, "ONE_TILE_PROGRAMS", 0)
    monkeypatch.setattr(attention_split, "SPLITS", ((1 << 30, ((1 << 30, 96, small_tile),)),))
    (num_heads, num_kv_heads), head_dim = shape
    case = paged_case(SEQUENCES, (num_heads, num_kv_heads), head_dim, block_size=64, dtype=dtype, device=device)
    lens = case.batch.seq_lens.long()
    rows = torch.arange(len(lens), device=device)
    pages = case.batch.block_table[case.batch.slots.long()][rows, (lens - 1) // 64]
    batch = replace(case.batch, positions=(lens - 1).int(), slot_mapping=(pages * 64 + (lens - 1) % 64).int(),
                    num_tokens=len(lens), shared=Shared())
    caches = [cache.clone() for cache in (case.k_cache, case.v_cache)]
    for cache in caches:
        cache[pages.long(), :, (lens - 1) % 64] = math.nan  # to be written by the kernel
    qkv = torch.randn(len(lens), (num_heads + 2 * num_kv_heads) * head_dim).to(dtype).to(device)
    table = cos_sin_table(RopeConfig(), head_dim, 256, device)
    weights = [torch.rand(head_dim).to(dtype).to(device) + 0.5 for _ in range(2)] if norm else [None, None]

    out = torch.full((len(lens), num_heads, head_dim), math.nan, dtype=dtype, device=device)
    attention_split.launch_split(
        out, qkv.view(len(lens), -1, head_dim), *caches, batch, case.scale * math.log2(math.e), window or 0,
        attention_split.FromQKV(table, *weights, EPS))

    on_cpu = [cache.cpu() for cache in (case.k_cache, case.v_cache)]
    tensors = {name: value.cpu() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    expected = qkv_attention(
        qkv.cpu(), num_heads, num_kv_heads, head_dim, replace(batch, **tensors), table.cpu(), *on_cpu, case.scale,
        window, *(weight if weight is None else weight.cpu() for weight in weights), EPS)
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out.cpu(), expected, rtol=tolerance, atol=tolerance)
    for got, want in zip(caches, on_cpu):
        torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance, equal_nan=True)


@given(programs=st.integers(1, 8192), longest=st.integers(1, 1 << 17))
def test_how_keys_are_shared_out(programs, longest):
    """Every context is covered by splits, few of them where there are programs enough, and by one where it is short."""
    split = attention_split.choose_split(programs, longest, attention_split.Tile(64, 4, 3), attention_split.SMALL_TILE)
    num_splits = -(-longest // split.keys)
    assert split.keys % split.tile.keys == 0
    assert programs <= 16 or num_splits <= attention_split.MOST_SPLITS
    assert num_splits == 1 or programs <= 255 or longest > attention_split.WHOLE


def test_short_steps_take_one_tile_a_program():
    """What the two sides of the choice above stand for."""
    assert attention_split.ONE_TILE.keys <= 64 and attention_split.ONE_TILE_PROGRAMS >= 8 * 132
