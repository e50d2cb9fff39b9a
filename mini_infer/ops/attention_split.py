"""Attention when every sequence has one token: a program owns a stretch of one sequence's keys (Flash-Decoding,
Dao et al. 2023), and a small kernel merges the stretches."""

from __future__ import annotations

import torch

from mini_infer.ops.attention_tile import Tile, attend
from mini_infer.ops.dispatch import tl, triton
from mini_infer.ops.inputs import ForwardBatch

# By (bytes of an element, head_dim rounded up to a power of two). The 2-byte tiles up to 128 were the fastest of those
# tried on an H200; the others are those that fit into its shared memory.
SPLIT_TILES = {  # small ones, so that several programs share an SM and hide each other's latency
    (2, 64): Tile(16, 32, 2, 5),
    (2, 128): Tile(16, 32, 2, 5),
    (2, 256): Tile(16, 64, 4, 3),
    (4, 64): Tile(16, 32, 4, 3),
    (4, 128): Tile(16, 32, 4, 3),
    (4, 256): Tile(16, 16, 4, 2),
}
# Keys per split by sequences x KV heads, the programs that there are anyhow: few programs need short splits to fill the
# GPU, many need long ones to have little to merge.
SPLIT_KEYS = ((16, 128), (64, 256), (256, 512), (1 << 30, 4096))
MERGE_SPLITS = 16  # splits that the merging kernel reads at a time


def launch_split(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale_log2: float,
    window: int,
) -> None:
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_dim = triton.next_power_of_2(head_dim)
    tile = SPLIT_TILES[q.element_size(), block_dim]
    split_keys = next(keys for programs, keys in SPLIT_KEYS if batch.num_seqs * num_kv_heads <= programs)
    # Splits count from the first key that a sequence sees, so a window bounds their number.
    longest = min(batch.max_seq_len, window) if window else batch.max_seq_len
    num_splits = max(1, triton.cdiv(longest, split_keys))
    # Sequences that fit one split write `out` directly, so that the scratch is only used by those that do not.
    partial = torch.empty((batch.num_seqs, num_heads, num_splits, head_dim) if num_splits > 1 else 1,
                          dtype=torch.float32, device=q.device)
    partial_lse = torch.empty((batch.num_seqs, num_heads, num_splits) if num_splits > 1 else 1,
                              dtype=torch.float32, device=q.device)
    _split_kernel[(batch.num_seqs, num_kv_heads, num_splits)](
        out, partial, partial_lse, q, k_cache, v_cache, batch.cu_seqlens_q, batch.seq_lens, batch.slots,
        batch.block_table, num_splits, split_keys, q.stride(0), q.stride(1), batch.block_table.stride(0), scale_log2,
        GROUP=group, KV_HEADS=num_kv_heads, DIM=head_dim, BLOCK_DIM=block_dim, BLOCK_SIZE=block_size,
        ROWS=max(tile.rows, triton.next_power_of_2(group)), KEYS=tile.keys, WINDOW=window,
        num_warps=tile.warps, num_stages=tile.stages,
    )
    if num_splits > 1:
        _merge_kernel[(batch.num_seqs, num_heads)](
            out, partial, partial_lse, batch.cu_seqlens_q, batch.seq_lens, num_splits, split_keys,
            HEADS=num_heads, DIM=head_dim, BLOCK_DIM=block_dim, WINDOW=window,
            SPLITS=MERGE_SPLITS, num_warps=2,
        )


@triton.jit(do_not_specialize=["num_splits", "split_keys"])
def _split_kernel(
    out_ptr, partial_ptr, partial_lse_ptr, q_ptr, k_cache_ptr, v_cache_ptr, cu_seqlens_q_ptr, seq_lens_ptr, slots_ptr,
    block_table_ptr, num_splits, split_keys, q_token_stride, q_head_stride, table_stride, scale_log2,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr,
):
    """A program: the one query token of a sequence x the GROUP query heads of one KV head, over one split of keys."""
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(seq_lens_ptr + seq)
    first = _first_key(length, WINDOW)
    begin = first + split * split_keys
    if (begin >= length) & (split > 0):  # split 0 of an empty padding sequence still writes its row
        return
    end = tl.minimum(length, begin + split_keys)
    row = tl.arange(0, ROWS)
    row_mask = row < GROUP
    head = kv_head * GROUP + row
    column = tl.arange(0, BLOCK_DIM)
    mask = row_mask[:, None] & (column < DIM)[None, :]
    query_row = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
    q_row = q_ptr + query_row * q_token_stride + head * q_head_stride
    q = tl.load(q_row[:, None] + column[None, :], mask=mask, other=0.0)
    acc, total, peak = attend(
        q, tl.zeros([ROWS], tl.int32) + (length - 1), begin, end,
        block_table_ptr + tl.load(slots_ptr + seq).to(tl.int64) * table_stride, k_cache_ptr, v_cache_ptr, kv_head,
        scale_log2, KV_HEADS, DIM, BLOCK_DIM, BLOCK_SIZE, ROWS, KEYS, WINDOW,
    )
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if length - first <= split_keys:
        out = out_ptr + (query_row * (KV_HEADS * GROUP) + head)[:, None] * DIM + column[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        part = (seq.to(tl.int64) * (KV_HEADS * GROUP) + head) * num_splits + split
        tl.store(partial_ptr + part[:, None] * DIM + column[None, :], acc, mask=mask)
        tl.store(partial_lse_ptr + part, peak + tl.log2(total), mask=row_mask)


@triton.jit(do_not_specialize=["num_splits", "split_keys"])
def _merge_kernel(
    out_ptr, partial_ptr, partial_lse_ptr, cu_seqlens_q_ptr, seq_lens_ptr, num_splits, split_keys,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """A program: the splits of one sequence and head, weighted by their log-sum-exps, in a fixed order."""
    seq = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(seq_lens_ptr + seq)
    used = tl.cdiv(length - _first_key(length, WINDOW), split_keys)
    if used <= 1:  # the split kernel has written the result
        return
    column = tl.arange(0, BLOCK_DIM)
    column_mask = column < DIM
    part = (seq.to(tl.int64) * HEADS + head) * num_splits
    peak = -float("inf")
    total = 0.0
    acc = tl.zeros([BLOCK_DIM], tl.float32)
    for first in range(0, used, SPLITS):
        split = first + tl.arange(0, SPLITS)
        lse = tl.load(partial_lse_ptr + part + split, mask=split < used, other=-float("inf"))
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))  # finite: a split in use has a key
        weight = tl.exp2(lse - new_peak)
        decay = tl.exp2(peak - new_peak)
        values = tl.load(partial_ptr + (part + split)[:, None] * DIM + column[None, :],
                         mask=(split < used)[:, None] & column_mask[None, :], other=0.0)
        acc = acc * decay + tl.sum(values * weight[:, None], axis=0)
        total = total * decay + tl.sum(weight, axis=0)
        peak = new_peak
    out = out_ptr + (tl.load(cu_seqlens_q_ptr + seq).to(tl.int64) * HEADS + head) * DIM + column
    tl.store(out, (acc / total).to(out_ptr.dtype.element_ty), mask=column_mask)


@triton.jit
def _first_key(length, WINDOW: tl.constexpr):
    """The first key that the last token of a sequence sees."""
    first = length * 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    return first
