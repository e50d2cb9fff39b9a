"""What both attention kernels share: the shape of a tile, and the loop over the pages of one sequence and KV head.

The loop is flash attention's (Dao 2023, arXiv:2307.08691) with an online softmax in base 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from mini_infer.ops.dispatch import tl, triton


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time, and how."""

    rows: int  # query rows: tokens x the query heads of a KV head; the ragged kernel takes fewer where fewer will do
    keys: int
    warps: int
    stages: int


@triton.jit
def attend(
    q, position, begin, end, table_ptr, k_cache_ptr, v_cache_ptr, kv_head, scale_log2,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr,
):
    """q [ROWS, BLOCK_DIM], at `position` [ROWS], over keys begin .. end - 1 of one sequence and KV head.

    Returns the values weighted by exp2(score - peak) [ROWS, BLOCK_DIM], the weights' sum and the peak [ROWS], all
    float32. A row that saw no key has sum 0. Nothing outside begin .. end - 1 is read.
    """
    column = tl.arange(0, BLOCK_DIM)
    column_mask = column < DIM
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    for start in range(begin // KEYS * KEYS, end, KEYS):
        key = start + tl.arange(0, KEYS)
        key_mask = (key >= begin) & (key < end)
        if KEYS <= BLOCK_SIZE:  # the tile lies in one page
            block = tl.load(table_ptr + start // BLOCK_SIZE).to(tl.int64)
            vector = (block * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE
        else:
            blocks = tl.load(table_ptr + key // BLOCK_SIZE, mask=key_mask, other=0).to(tl.int64)
            vector = (blocks * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE
        k = tl.load(k_cache_ptr + vector[None, :] * DIM + column[:, None],
                    mask=key_mask[None, :] & column_mask[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        seen = (key[None, :] <= position[:, None]) & key_mask[None, :]
        if WINDOW > 0:
            seen &= key[None, :] > position[:, None] - WINDOW
        scores = tl.where(seen, scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        base = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # no key seen yet: keep -inf - -inf away
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(peak - base)
        v = tl.load(v_cache_ptr + vector[:, None] * DIM + column[None, :],
                    mask=key_mask[:, None] & column_mask[None, :], other=0.0)
        total = total * decay + tl.sum(weights, axis=1)
        acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = new_peak
    return acc, total, peak
