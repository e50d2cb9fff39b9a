"""Cache writes, fused with QK-norm and RoPE: the right places get the right values, no others change."""

from __future__ import annotations

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


@pytest.mark.gpu
def test_offsets_beyond_31_bits():
    """A block more than 2**31 elements into the cache, written and then attended to."""
    num_blocks, num_kv_heads, block_size, head_dim = 2**31 // (8 * 64 * 128) + 2, 8, 64, 128
    cache = torch.empty(num_blocks, num_kv_heads, block_size, head_dim, dtype=torch.bfloat16, device="cuda")
    k = torch.randn(1, num_kv_heads, head_dim, dtype=torch.bfloat16, device="cuda")
    slot = torch.tensor([num_blocks * block_size - 1], dtype=torch.int32, device="cuda")
    qkv = torch.cat((k, k, k), dim=1).flatten(1)
    positions = torch.zeros(1, dtype=torch.int32, device="cuda")
    unturned = torch.cat((torch.ones(1, head_dim // 2), torch.zeros(1, head_dim // 2)), dim=1).cuda()
    kv_write.qkv_to_cache(qkv, num_kv_heads, num_kv_heads, head_dim, positions, slot, unturned, cache, cache)
    assert torch.equal(cache[-1, :, -1], k[0])


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("heads", [(8, 2), (7, 1), (3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_qkv_to_cache(implementation, assert_close, dtype, norm, heads, head_dim):
    op, device = getattr(kv_write, f"_qkv_to_cache_{implementation.name}"), implementation.device
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


def test_padding_shares_the_null_slot(implementation):
    op, device = getattr(kv_write, f"_qkv_to_cache_{implementation.name}"), implementation.device
    k_cache, v_cache = caches(2, 2, 8, 64, torch.float32, device)
    qkv = torch.randn(4, 6 * 64, device=device)
    slots = torch.tensor([3, 16, 16, 16], dtype=torch.int32, device=device)
    unturned = torch.cat((torch.ones(1, 32), torch.zeros(1, 32)), dim=1).to(device)
    op(qkv, 2, 2, 64, torch.zeros(4, dtype=torch.int32, device=device), slots, unturned, k_cache, v_cache)
    _, k, v = qkv.view(4, 3, 2, 64).unbind(1)
    for cache, values in ((k_cache, k), (v_cache, v)):
        written, rest_untouched = stored(cache, slots[:1])
        assert torch.equal(written, values[:1]) and rest_untouched
        # They are written side by side, in any order: each element is one of theirs.
        assert (cache[2, :, 0] == values[1:]).any(dim=0).all()
