"""Keys and values enter the paged cache; the fused form also normalises and rotates what the QKV matmul left.

A layer's cache is [num_blocks + 1, num_kv_heads, block_size, head_dim]; slot s is token s % block_size of block
s // block_size.
"""

from __future__ import annotations

import torch

from mini_infer.ops.norm import _rms_norm_torch
from mini_infer.ops.rope import _apply_rope_torch


def write_kv(
    k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
) -> None:
    """Store k and v [T, Hkv, D] at the slots int32 [T] of the caches. Padding tokens share a null slot: any may win."""
    _write_kv_torch(k, v, slot_mapping, k_cache, v_cache)


def qkv_to_cache(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Split qkv [T, (Hq + 2 Hkv) D], norm q and k per head if asked, rotate both, cache K and V -> q [T, Hq, D].

    `q_norm` and `k_norm` [D] go together (Qwen3's QK-norm); `table` is rope.cos_sin_table's.
    """
    return _qkv_to_cache_torch(qkv, num_heads, num_kv_heads, head_dim, positions, slot_mapping, table, k_cache, v_cache,
                               q_norm, k_norm, eps)


def _write_kv_torch(
    k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
) -> None:
    block_size = k_cache.shape[2]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    k_cache[block, :, offset] = k
    v_cache[block, :, offset] = v


def _qkv_to_cache_torch(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    q, k, v = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if q_norm is not None and k_norm is not None:
        q, k = _rms_norm_torch(q, q_norm, eps), _rms_norm_torch(k, k_norm, eps)
    q, k = _apply_rope_torch(q, positions, table), _apply_rope_torch(k, positions, table)
    _write_kv_torch(k, v, slot_mapping, k_cache, v_cache)
    return q
