"""Keys and values enter the paged cache, normalised and rotated on the way from what the QKV matmul left.

A layer's cache is [num_blocks + 1, num_kv_heads, block_size, head_dim]; slot s is token s % block_size of block
s // block_size.
"""

from __future__ import annotations

import torch

from mini_infer.ops import native
from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton
from mini_infer.ops.inputs import Shared
from mini_infer.ops.pdl import let_next_start, pdl_options, wait_for_previous
from mini_infer.ops.rope import _rotate_torch, _rotations_torch, load_cos_sin


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
    shared: Shared | None = None,
) -> torch.Tensor:
    """Split qkv [T, (Hq + 2 Hkv) D], norm q and k per head if asked, rotate both, cache K and V -> q [T, Hq, D].

    `qkv` is contiguous and stays as it is; `q_norm` and `k_norm` [D] go together (Qwen3's QK-norm); `table` is
    `rope.cos_sin_table`'s; `positions` and `slot_mapping` are int32 [T]. What lies between qkv's rounding and the
    result's is computed in float32. `shared` is the step's: its layers differ in qkv, norms and caches alone.
    """
    if use_triton(qkv):
        return _qkv_to_cache_triton(qkv, num_heads, num_kv_heads, head_dim, positions, slot_mapping, table, k_cache,
                                    v_cache, q_norm, k_norm, eps)
    if native.use_native(qkv, qkv.numel()):
        return native.qkv_to_cache(qkv, num_heads, num_kv_heads, head_dim, positions, slot_mapping, table, k_cache,
                                   v_cache, q_norm, k_norm, eps)
    return _qkv_to_cache_torch(qkv, num_heads, num_kv_heads, head_dim, positions, slot_mapping, table, k_cache,
                               v_cache, q_norm, k_norm, eps, shared)


def _places(slot_mapping: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The block and the place in it of each token, int64 [T] each."""
    slots = slot_mapping.long()
    return slots // block_size, slots % block_size


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
    shared: Shared | None = None,
) -> torch.Tensor:
    shared = shared or Shared()
    heads = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim)
    qk, v = heads[:, :-num_kv_heads].float(), heads[:, -num_kv_heads:]
    if q_norm is not None and k_norm is not None:  # over all heads at once
        norms = torch.linalg.vector_norm(qk, dim=-1, keepdim=True)
        qk = qk * norms.square_().div_(head_dim).add_(eps).rsqrt_()
        qk[:, :num_heads].mul_(q_norm)
        qk[:, num_heads:].mul_(k_norm)
    rotations = shared.once("rotations", lambda: _rotations_torch(positions, table))
    places = shared.once("places", lambda: _places(slot_mapping, k_cache.shape[2]))
    qk = _rotate_torch(qk, *rotations).to(qkv.dtype)
    k_cache.transpose(1, 2).index_put_(places, qk[:, num_heads:])
    v_cache.transpose(1, 2).index_put_(places, v)
    return qk[:, :num_heads]


@triton.jit
def cache_offset(slot, head, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where in a cache [blocks, KV_HEADS, BLOCK_SIZE, DIM] a slot's vector of a head begins; int64."""
    block = (slot // BLOCK_SIZE).to(tl.int64)
    return ((block * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE) * DIM


def _qkv_to_cache_triton(
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
    num_tokens = qkv.shape[0]
    q = qkv.new_empty(num_tokens, num_heads, head_dim)
    heads = min(4, next_power_of_2(max(num_heads, num_kv_heads)))
    tiles = cdiv(num_heads, heads) + cdiv(num_kv_heads, heads)
    norm = q_norm is not None and k_norm is not None
    if num_tokens:
        _qkv_to_cache_kernel[(num_tokens, tiles)](
            qkv, positions, slot_mapping, table, q_norm if norm else qkv, k_norm if norm else qkv, q, k_cache, v_cache,
            eps, HEADS=num_heads, KV_HEADS=num_kv_heads, TILE_HEADS=heads,
            HALF=head_dim // 2, BLOCK_HALF=next_power_of_2(head_dim // 2), BLOCK_SIZE=k_cache.shape[2],
            NORM=norm, **pdl_options(qkv, num_tokens), num_warps=2,
        )
    return q


@triton.jit
def _qkv_to_cache_kernel(
    qkv_ptr, positions_ptr, slot_mapping_ptr, table_ptr, q_norm_ptr, k_norm_ptr, q_ptr, k_cache_ptr, v_cache_ptr, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TILE_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):
    """A program serves TILE_HEADS heads of one token: either query heads, or key heads with their value heads."""
    let_next_start(PDL)
    DIM: tl.constexpr = 2 * HALF
    Q_TILES: tl.constexpr = (HEADS + TILE_HEADS - 1) // TILE_HEADS
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    column = tl.arange(0, BLOCK_HALF)[None, :]
    cos, sin = load_cos_sin(table_ptr, tl.load(positions_ptr + token), HALF, BLOCK_HALF)
    slot = tl.load(slot_mapping_ptr + token)
    wait_for_previous(PDL)
    qkv_row = qkv_ptr + token * ((HEADS + 2 * KV_HEADS) * DIM)
    if tile < Q_TILES:
        head = tile * TILE_HEADS + tl.arange(0, TILE_HEADS)[:, None]
        mask = (head < HEADS) & (column < HALF)
        left, right = _rotated(qkv_row + head * DIM + column, q_norm_ptr, mask, cos, sin, eps, HALF, BLOCK_HALF, NORM)
        q_target = q_ptr + (token * HEADS + head) * DIM + column
        tl.store(q_target, left.to(q_ptr.dtype.element_ty), mask=mask)
        tl.store(q_target + HALF, right.to(q_ptr.dtype.element_ty), mask=mask)
    else:
        head = (tile - Q_TILES) * TILE_HEADS + tl.arange(0, TILE_HEADS)[:, None]
        mask = (head < KV_HEADS) & (column < HALF)
        source = qkv_row + (HEADS + head) * DIM + column
        left, right = _rotated(source, k_norm_ptr, mask, cos, sin, eps, HALF, BLOCK_HALF, NORM)
        target = cache_offset(slot, head, KV_HEADS, DIM, BLOCK_SIZE) + column
        tl.store(k_cache_ptr + target, left.to(k_cache_ptr.dtype.element_ty), mask=mask)
        tl.store(k_cache_ptr + target + HALF, right.to(k_cache_ptr.dtype.element_ty), mask=mask)
        source += KV_HEADS * DIM
        tl.store(v_cache_ptr + target, tl.load(source, mask=mask, other=0.0), mask=mask)
        tl.store(v_cache_ptr + target + HALF, tl.load(source + HALF, mask=mask, other=0.0), mask=mask)


@triton.jit
def _rotated(
    source, norm_ptr, mask, cos, sin, eps, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, NORM: tl.constexpr
):
    """Load heads by halves, norm them if asked, rotate them; float32."""
    left = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        column = tl.arange(0, BLOCK_HALF)
        weight_left = tl.load(norm_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)
        weight_right = tl.load(norm_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
        mean_square = (tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / (2 * HALF)
        inverse_rms = (1.0 / tl.sqrt(mean_square + eps))[:, None]
        left *= inverse_rms * weight_left[None, :]
        right *= inverse_rms * weight_right[None, :]
    return left * cos - right * sin, right * cos + left * sin
