"""Attention of prompt chunks, decode tokens and drafts in one launch: a program owns a tile of query tokens."""

from __future__ import annotations

import torch

from mini_infer.ops.attention_tile import Tile, attend
from mini_infer.ops.dispatch import tl, triton
from mini_infer.ops.inputs import ForwardBatch

# By (bytes of an element, head_dim rounded up to a power of two). The 2-byte tiles up to 128 were the fastest of those
# tried on an H200; the others are those that fit into its shared memory.
RAGGED_TILES = {
    (2, 64): Tile(64, 64, 4, 3),
    (2, 128): Tile(64, 64, 4, 3),
    (2, 256): Tile(64, 32, 4, 2),
    (4, 64): Tile(32, 32, 4, 2),
    (4, 128): Tile(32, 32, 4, 2),
    (4, 256): Tile(16, 16, 4, 2),
}


def launch_ragged(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale_log2: float,
    window: int,
) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_dim = triton.next_power_of_2(head_dim)
    tile = RAGGED_TILES[q.element_size(), block_dim]
    wanted = triton.next_power_of_2(batch.max_query_len * group)
    rows = max(16, triton.next_power_of_2(group), min(tile.rows, wanted))
    # Each sequence may leave its last tile unfilled, so this many tiles always suffice; the surplus returns at once.
    num_tiles = num_tokens // (rows // group) + batch.num_seqs
    _ragged_kernel[(num_tiles, num_kv_heads)](
        out, q, k_cache, v_cache, batch.cu_seqlens_q, batch.seq_lens, batch.slots, batch.block_table, batch.num_seqs,
        q.stride(0), q.stride(1), batch.block_table.stride(0), scale_log2,
        GROUP=group, KV_HEADS=num_kv_heads, DIM=head_dim, BLOCK_DIM=block_dim, BLOCK_SIZE=block_size,
        ROWS=rows, KEYS=tile.keys, WINDOW=window, num_warps=tile.warps, num_stages=tile.stages,
    )


@triton.jit(do_not_specialize=["num_seqs"])
def _ragged_kernel(
    out_ptr, q_ptr, k_cache_ptr, v_cache_ptr, cu_seqlens_q_ptr, seq_lens_ptr, slots_ptr, block_table_ptr, num_seqs,
    q_token_stride, q_head_stride, table_stride, scale_log2,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr,
):
    """A program: TOKENS query tokens of one sequence x the GROUP query heads of one KV head, over all their keys."""
    TOKENS: tl.constexpr = ROWS // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    # Sequence b's tiles begin at number cu_seqlens_q[b] // TOKENS + b: far enough from the next one's for all of its
    # tokens, and growing with b, so that a binary search finds the sequence of a tile.
    low = 0
    high = num_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens_q_ptr + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle - 1
    first_token = tl.load(cu_seqlens_q_ptr + low)
    num_tokens = tl.load(cu_seqlens_q_ptr + low + 1) - first_token
    start = (tile - first_token // TOKENS - low) * TOKENS
    if start >= num_tokens:
        return
    length = tl.load(seq_lens_ptr + low)
    row = tl.arange(0, ROWS)
    token = start + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_mask = (row < TOKENS * GROUP) & (token < num_tokens)
    position = length - num_tokens + token
    query_row = (first_token + token).to(tl.int64)
    column = tl.arange(0, BLOCK_DIM)
    mask = row_mask[:, None] & (column < DIM)[None, :]
    q_row = q_ptr + query_row * q_token_stride + head * q_head_stride
    q = tl.load(q_row[:, None] + column[None, :], mask=mask, other=0.0)
    end = tl.minimum(length, length - num_tokens + start + TOKENS)
    begin = 0
    if WINDOW > 0:  # skip the tiles left of the first token's window
        begin = tl.maximum(0, length - num_tokens + start - WINDOW + 1)
    acc, total, _ = attend(
        q, position, begin, end, block_table_ptr + tl.load(slots_ptr + low).to(tl.int64) * table_stride, k_cache_ptr,
        v_cache_ptr, kv_head, scale_log2, KV_HEADS, DIM, BLOCK_DIM, BLOCK_SIZE, ROWS, KEYS, WINDOW,
    )
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out = out_ptr + ((query_row * (KV_HEADS * GROUP) + head) * DIM)[:, None] + column[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)
