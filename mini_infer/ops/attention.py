"""Paged attention over a ragged batch: prompt chunks, decode tokens and drafts in one call.

Two Triton kernels share one inner loop, flash attention's (Dao 2023, arXiv:2307.08691) over the pages of one sequence
and one KV head, with the query heads of that KV head packed into the rows of a tile:

- the ragged kernel: a program owns a tile of query tokens of any sequence;
- the split kernel, when every sequence has one token: a program owns a stretch of one sequence's keys
  (Flash-Decoding), and a small kernel merges the stretches.

Which one runs follows from integers that the host knows; no kernel waits for the host, so CUDA graphs can hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mini_infer.ops.dispatch import tl, triton, use_triton
from mini_infer.ops.inputs import ForwardBatch


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Causal attention of q [T, Hq, D] over the cached keys and values of its sequences -> [T, Hq, D] in q.dtype.

    The caches [num_blocks + 1, Hkv, block_size, D] already hold this step's tokens. The token at position p of its
    sequence sees keys 0 .. p; under a sliding window w only those with p - w < j <= p. q may be a strided view whose
    last dimension is contiguous. Tokens beyond `cu_seqlens_q[B]` (a graph's padding) get anything. Every entry of the
    block table must be a block of the cache, those behind a sequence's end too; what such blocks hold does not matter,
    NaN included.
    """
    run = _paged_attention_triton if use_triton(q) else _paged_attention_torch
    return run(q, k_cache, v_cache, batch, scale, sliding_window)


# ----------------------------------------------------------------------------------------------------- torch reference
# Sequences of one token share padded calls, a longer one has a call of its own; nothing loops over tokens or heads, and
# no key is copied per query head.

_CALL_WORTH = 2048  # keys of padding that cost about as much as another call
_MAX_GATHER = 1 << 16  # tokens that one padded call may gather, padding included


def _paged_attention_torch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    num_kv_heads, block_size = k_cache.shape[1:3]
    plan = batch.shared.once(("attention", sliding_window),
                             lambda: _Plan(batch, num_kv_heads, block_size, sliding_window, q.dtype))
    if len(plan.calls) == 1 and plan.calls[0].tokens is None:
        return _run_call(q, k_cache, v_cache, plan, plan.calls[0], scale)
    out = q.new_empty(q.shape)
    for call in plan.calls:
        out[call.tokens] = _run_call(q[call.tokens], k_cache, v_cache, plan, call, scale)
    return out


@dataclass(frozen=True)
class _Call:
    """One call of scaled_dot_product_attention: several tokens of one sequence, or one each of R sequences."""

    sequences: list[int]
    tokens: slice | torch.Tensor | None  # which rows of q ask; None: all
    pages: torch.Tensor  # [R * Hkv * P], the rows to gather from a cache seen as [blocks * Hkv, block_size * D]
    keys: slice  # which of the P * block_size keys count
    mask: torch.Tensor | None  # to be added to the scores; None: each token sees the keys up to its own


class _Plan:
    """The calls that a step's attention takes, the same in all its layers."""

    def __init__(self, batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None, dtype: torch.dtype):
        self._batch = batch
        self._num_kv_heads = num_kv_heads
        self._block_size = block_size
        self._window = window
        self._dtype = dtype
        self._starts, self._lens = batch.cu_seqlens_q.tolist(), batch.seq_lens.tolist()
        self._slots = batch.slots.tolist()
        self.calls: list[_Call] = []
        singles = []
        for b in range(batch.num_seqs):
            n = self._starts[b + 1] - self._starts[b]
            if n == 1:
                singles.append(b)
            elif n > 1:
                self.calls.append(self.alone(b))
        for group in _alike(singles, self._lens):
            self.calls.append(self.alone(group[0]) if len(group) == 1 else self._together(group))

    def alone(self, b: int) -> _Call:
        """A call for sequence b, over exactly the keys that it has."""
        begin, end = self._starts[b], self._starts[b + 1]
        n, window, block_size = end - begin, self._window, self._block_size
        length = max(self._lens[b], n)  # a padding sequence may say 0
        first_key = 0 if window is None else max(0, length - n + 1 - window)
        first_block = first_key // block_size
        slot = self._slots[b]
        table = self._batch.block_table[slot : slot + 1, first_block : -(-length // block_size)]
        mask = None
        if n > 1 and (first_key > 0 or length > n or window is not None):
            query_pos = torch.arange(length - n, length)[:, None]
            key_pos = torch.arange(first_key, length)
            seen = key_pos <= query_pos
            if window is not None:
                seen &= key_pos > query_pos - window
            mask = self._mask(seen)
        keys = slice(first_key - first_block * block_size, length - first_block * block_size)
        tokens = None if n == self._batch.num_tokens else slice(begin, end)
        return _Call([b], tokens, self._pages(table), keys, mask)

    def _together(self, group: list[int]) -> _Call:
        """A call for sequences with a token each, their keys padded to those of the longest."""
        batch, window, block_size = self._batch, self._window, self._block_size
        tokens, slots = None, batch.slots
        if len(group) < batch.num_tokens:  # else it is 0 .. B - 1 in order
            tokens, slots = torch.tensor([self._starts[b] for b in group]), slots[group]
        lens = [self._lens[b] for b in group]
        ends = torch.tensor(lens, dtype=torch.int32)[:, None]
        if window is None or max(lens) <= window:
            num_pages = -(-max(lens) // block_size)
            table = batch.block_table[:, :num_pages].index_select(0, slots)
            seen = torch.arange(num_pages * block_size, dtype=torch.int32) < ends
        else:
            first_blocks = (ends - window).clamp_(min=0) // block_size
            max_blocks = batch.block_table.shape[1]
            num_pages = min(-(-window // block_size) + 1, max_blocks)
            columns = first_blocks + torch.arange(num_pages)
            table = batch.block_table[slots[:, None], columns.clamp(max=max_blocks - 1)]
            key_pos = first_blocks * block_size + torch.arange(num_pages * block_size)
            seen = (key_pos < ends) & (key_pos >= ends - window)
        return _Call(group, tokens, self._pages(table), slice(None), self._mask(seen[:, None, None]))

    def _pages(self, table: torch.Tensor) -> torch.Tensor:
        """Block tables [R, P] -> `_Call.pages`."""
        heads = torch.arange(self._num_kv_heads, dtype=torch.int32)[:, None]
        return (table.unsqueeze(1) * self._num_kv_heads + heads).flatten()

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=self._dtype).masked_fill_(~seen, -math.inf)


def _alike(rows: list[int], lens: list[int]) -> list[list[int]]:
    """Partition `rows` into groups that are padded to their longest; one group, in order, where that will do."""

    def alike(longest: int, count: int, total: int) -> bool:
        padded = longest * count
        return padded - total <= max(_CALL_WORTH, total) and padded <= _MAX_GATHER

    lengths = [lens[b] for b in rows]
    if not rows or alike(max(lengths), len(rows), sum(lengths)):
        return [rows] if rows else []
    groups: list[list[int]] = []
    longest = total = 0
    for b in sorted(rows, key=lens.__getitem__, reverse=True):
        if groups and alike(longest, len(groups[-1]) + 1, total + lens[b]):
            groups[-1].append(b)
            total += lens[b]
        else:
            groups.append([b])
            longest = total = lens[b]
    return groups


def _run_call(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, plan: _Plan, call: _Call, scale: float
) -> torch.Tensor:
    """The tokens of a call, q [n, Hq, D] -> [n, Hq, D]."""
    num_tokens, num_heads, head_dim = q.shape
    num_seqs = len(call.sequences)
    k, v = (_gather(cache, call.pages, num_seqs)[:, :, call.keys] for cache in (k_cache, v_cache))
    if num_tokens > num_seqs:
        return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=call.mask, scale=scale,
                                              is_causal=call.mask is None, enable_gqa=True)[0].transpose(0, 1)
    # One token each: the query heads of a KV head are the query rows of one attention. SDPA keeps bf16 scores in
    # float32; two batched matmuls are up to a third faster at batch 16 but round them.
    q_rows = q.reshape(num_seqs, k_cache.shape[1], -1, head_dim)
    out = F.scaled_dot_product_attention(q_rows, k, v, attn_mask=call.mask, scale=scale).view(-1, num_heads, head_dim)
    if num_seqs > 1 and not math.isfinite(out.sum(dtype=torch.float32).item()):
        # Zero times a non-finite leftover behind some sequence's end is NaN: take the exact slices instead.
        return torch.cat([_run_call(q[i : i + 1], k_cache, v_cache, plan, plan.alone(b), scale)
                          for i, b in enumerate(call.sequences)])
    return out


def _gather(cache: torch.Tensor, rows: torch.Tensor, num_seqs: int) -> torch.Tensor:
    """[R, Hkv, P * block_size, D]: one copy of whole pages, already in the order that attention wants."""
    num_kv_heads, block_size, head_dim = cache.shape[1:]
    pages = cache.view(-1, block_size * head_dim).index_select(0, rows)
    return pages.view(num_seqs, num_kv_heads, -1, head_dim)


# ------------------------------------------------------------------------------------------------------ Triton kernels


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time, and how."""

    rows: int  # query rows: tokens x the query heads of a KV head; the ragged kernel takes fewer where fewer will do
    keys: int
    warps: int
    stages: int


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


def _paged_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if batch.num_seqs == 0 or q.shape[0] == 0:
        return out
    launch = _launch_split if batch.max_query_len == 1 else _launch_ragged
    launch(out, q, k_cache, v_cache, batch, scale * math.log2(math.e), sliding_window or 0)
    return out


def _launch_ragged(
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


def _launch_split(
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
    acc, total, _ = _attend(
        q, position, begin, end, block_table_ptr + tl.load(slots_ptr + low).to(tl.int64) * table_stride, k_cache_ptr,
        v_cache_ptr, kv_head, scale_log2, KV_HEADS, DIM, BLOCK_DIM, BLOCK_SIZE, ROWS, KEYS, WINDOW,
    )
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out = out_ptr + ((query_row * (KV_HEADS * GROUP) + head) * DIM)[:, None] + column[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)


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
    acc, total, peak = _attend(
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


@triton.jit
def _attend(
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
