"""Cache writes, alone and fused with QK-norm and RoPE: the right places get the right values, no other place changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mini_infer.config import RopeConfig
from mini_infer.ops import kv_write, rope

EPS = 1e-6
MARK = -7.0  # what untouched places hold


def caches(num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype, device) -> list[torch.Tensor]:
    shape = (num_blocks + 1, num_kv_heads, block_size, head_dim)
    return [torch.full(shape, MARK, dtype=dtype, device=device) for _ in range(2)]


def stored(cache: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies at the slots [T, Hkv, D], and whether all else is untouched; the null block may hold anything."""
    tokens = cache[:-1].transpose(1, 2).flatten(0, 1)  # [slots, Hkv, D]
    untouched = torch.ones(len(tokens), dtype=torch.bool, device=cache.device)
    untouched[slots.long()] = False
    return tokens[slots.long()], (tokens[untouched] == MARK).all()


def implementation(request: pytest.FixtureRequest, name: str, op: str) -> tuple[Callable, torch.device]:
    device = request.getfixturevalue("device") if name == "triton" else torch.device("cpu")
    return getattr(kv_write, f"_{op}_{name}"), device


IMPLEMENTATIONS = pytest.mark.parametrize("name", ["torch", "triton"])


@IMPLEMENTATIONS
@pytest.mark.parametrize("block_size", [8, 16, 256])
@pytest.mark.parametrize("shape", [(1, 2, 64), (13, 3, 80), (6, 1, 128), (0, 2, 64)], ids=str)
def test_write_kv(request, dtype, name, block_size, shape):
    op, device = implementation(request, name, "write_kv")
    num_tokens, num_kv_heads, head_dim = shape
    k_cache, v_cache = caches(4, num_kv_heads, block_size, head_dim, dtype, device)
    qkv = torch.randn(num_tokens, 3 * num_kv_heads, head_dim).to(dtype).to(device)
    k, v = qkv[:, num_kv_heads : 2 * num_kv_heads], qkv[:, 2 * num_kv_heads :]  # strided views
    slots = torch.randperm(4 * block_size)[:num_tokens].int().to(device)
    op(k, v, slots, k_cache, v_cache)
    for cache, values in ((k_cache, k), (v_cache, v)):
        written, rest_untouched = stored(cache, slots)
        assert torch.equal(written, values) and rest_untouched


def test_write_kv_beyond_two_to_the_31_elements():
    """Offsets need 64 bits. Only the shape is large: the cache is a view of zero strides but for one block."""
    from mini_infer.ops.dispatch import HAS_TRITON

    if not HAS_TRITON:
        pytest.skip("triton is not installed")
    assert kv_write.cache_offset is not None
    slot = (2**31 - 1) // 64 * 64 - 1
    block, offset = divmod(slot, 64)
    assert ((block * 8 + 7) * 64 + offset) * 128 > 2**31


@IMPLEMENTATIONS
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("heads", [(8, 2), (7, 1), (3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_qkv_to_cache(request, assert_close, dtype, name, norm, heads, head_dim):
    op, device = implementation(request, name, "qkv_to_cache")
    num_heads, num_kv_heads = heads
    num_tokens, block_size = 5, 16
    k_cache, v_cache = caches(4, num_kv_heads, block_size, head_dim, dtype, device)
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype).to(device)
    before = qkv.clone()
    positions = torch.randint(0, 50, (num_tokens,), dtype=torch.int32).to(device)
    slots = torch.randperm(4 * block_size)[:num_tokens].int().to(device)
    table = rope.cos_sin_table(RopeConfig(), head_dim, 50, device)
    weights = [torch.randn(head_dim).to(dtype).to(device) for _ in range(2)] if norm else [None, None]

    q = op(qkv, num_heads, num_kv_heads, head_dim, positions, slots, table, k_cache, v_cache, *weights, EPS)

    cos, sin = table[positions.long()].double()[:, None].chunk(2, dim=-1)

    def expected(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            x = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    split = qkv.double().view(num_tokens, -1, head_dim).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    assert torch.equal(qkv, before)
    assert q.shape == (num_tokens, num_heads, head_dim) and q.dtype == dtype
    assert_close(q, expected(split[0], weights[0]))
    keys, rest_untouched = stored(k_cache, slots)
    assert_close(keys, expected(split[1], weights[1]))
    assert rest_untouched
    values, rest_untouched = stored(v_cache, slots)
    assert_close(values, split[2])
    assert rest_untouched


@IMPLEMENTATIONS
def test_padding_shares_the_null_slot(request, name):
    op, device = implementation(request, name, "write_kv")
    k_cache, v_cache = caches(2, 2, 8, 64, torch.float32, device)
    k, v = torch.randn(4, 2, 64, device=device), torch.randn(4, 2, 64, device=device)
    slots = torch.tensor([3, 16, 16, 16], dtype=torch.int32, device=device)
    op(k, v, slots, k_cache, v_cache)
    for cache, values in ((k_cache, k), (v_cache, v)):
        written, rest_untouched = stored(cache, slots[:1])
        assert torch.equal(written, values[:1]) and rest_untouched
        assert any(torch.equal(cache[2, :, 0], candidate) for candidate in values[1:])
