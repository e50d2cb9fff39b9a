"""Attention of prompt chunks, decode tokens and drafts in one launch: a program owns a tile of query tokens.

The loop is flash attention's (Dao 2023, arXiv:2307.08691) with an online softmax in base 2. Only tiles of keys at the
ends of what a query tile sees are masked. Where a tile of keys lies in one page, the tensor memory accelerator copies
it (on a GPU without one, Triton makes plain loads of that).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mini_infer.ops.dispatch import TensorDescriptor, next_power_of_2, tl, triton
from mini_infer.ops.inputs import ForwardBatch


@dataclass(frozen=True)
class RaggedTile:
    """What a program works on at a time, and how."""

    rows: int  # query rows: tokens x the query heads of a KV head
    keys: int
    warps: int
    stages: int
    registers: int | None = None  # a thread's at most

    def options(self) -> dict[str, int]:
        """How Triton shall compile the kernel."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


# By (bytes of an element, head_dim rounded up to a power of two): for small work and, where it pays, for large. The
# 2-byte tiles were the fastest of those tried on an H200 (with 128 registers two blocks of 8 warps share an SM); the
# others are those that fit into its shared memory.
RAGGED_TILES = {
    (2, 64): (RaggedTile(64, 64, 4, 3), RaggedTile(128, 64, 8, 3)),
    (2, 128): (RaggedTile(64, 64, 4, 3), RaggedTile(128, 64, 8, 2, registers=128)),
    (2, 256): (RaggedTile(64, 64, 4, 2), RaggedTile(128, 64, 8, 2)),
    (4, 64): (RaggedTile(32, 32, 4, 2),),
    (4, 128): (RaggedTile(32, 32, 4, 2),),
    (4, 256): (RaggedTile(16, 16, 4, 2),),
}
LARGE_WORK = 512  # programs, about two rounds of an H200; with fewer, half as large tiles spread the work better


def is_large(num_tokens: int, num_heads: int, rows: int) -> bool:
    """Whether so many tokens are enough work for tiles of `rows` query rows."""
    return num_tokens * num_heads // rows >= LARGE_WORK


def launch_ragged(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale_log2: float,
    window: int,
    first_seq: int = 0,
) -> None:
    """The sequences from `first_seq` on; those before it have a token each."""
    num_heads, head_dim = q.shape[1:]
    num_tokens, num_seqs = q.shape[0] - first_seq, batch.num_seqs - first_seq
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_dim = next_power_of_2(head_dim)
    tiles = RAGGED_TILES[q.element_size(), block_dim]
    tile = tiles[-1] if is_large(num_tokens, num_heads, tiles[-1].rows) else tiles[0]
    rows = max(tile.rows, next_power_of_2(group))
    # Each sequence may leave its last tile unfilled, so this many tiles always suffice; the surplus returns at once.
    num_tiles = num_tokens // (rows // group) + num_seqs
    k_pages = v_pages = None
    if block_size % tile.keys == 0:
        k_pages, v_pages = (TensorDescriptor(cache, [cache.numel() // head_dim, head_dim], [head_dim, 1],
                                             [tile.keys, block_dim]) for cache in (k_cache, v_cache))
    _ragged_kernel[(num_kv_heads, num_tiles)](
        out, q, k_cache, v_cache, k_pages, v_pages, batch.cu_seqlens_q, batch.seq_lens, batch.slots, batch.block_table,
        first_seq, batch.num_seqs, q.stride(0), q.stride(1), batch.block_table.stride(0), scale_log2,
        GROUP=group, KV_HEADS=num_kv_heads, DIM=head_dim, BLOCK_DIM=block_dim, BLOCK_SIZE=block_size, ROWS=rows,
        KEYS=tile.keys, STAGES=tile.stages, WINDOW=window, WAIT=tile.registers is not None and q.is_cuda,
        **tile.options(),
    )


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def _ragged_kernel(
    out_ptr, q_ptr, k_cache_ptr, v_cache_ptr, k_pages, v_pages, cu_seqlens_q_ptr, seq_lens_ptr, slots_ptr,
    block_table_ptr, first_seq, num_seqs, q_token_stride, q_head_stride, table_stride, scale_log2,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, WAIT: tl.constexpr,
):
    """A program: TOKENS query tokens of one sequence x the GROUP query heads of one KV head, over all their keys.

    k_pages, v_pages: descriptors of the caches as [blocks * KV_HEADS * BLOCK_SIZE, DIM], in tiles [KEYS, BLOCK_DIM], or
    None. WAIT: keep a tile's second product from running beside the next tile's first. Where there are too few
    registers for both, the assembler would wait for every single matrix instruction instead.
    """
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    # Late tokens see most keys, and long contexts come last: begin with them, in all heads.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    # From the first sequence on, b's tiles begin at number cu_seqlens_q[b] // TOKENS + b: far enough from the next
    # one's for all of its tokens, and growing with b.
    seq = first_seq - 1
    for first in range(first_seq, num_seqs, 128):
        index = first + tl.arange(0, 128)
        first_token = tl.load(cu_seqlens_q_ptr + index, mask=index < num_seqs, other=0)
        begun = (first_token - first_seq) // TOKENS + index - first_seq <= tile
        seq += tl.sum((begun & (index < num_seqs)).to(tl.int32))
    start, first_position, query_row, head, row_mask = _rows(
        cu_seqlens_q_ptr, seq_lens_ptr, first_seq, seq, tile, kv_head, GROUP, TOKENS, ROWS)
    num_tokens = tl.load(cu_seqlens_q_ptr + seq + 1) - tl.load(cu_seqlens_q_ptr + seq)
    if start >= num_tokens:
        return
    table_ptr = block_table_ptr + tl.load(slots_ptr + seq).to(tl.int64) * table_stride
    column = tl.arange(0, BLOCK_DIM)
    q_row = q_ptr + query_row * q_token_stride + head * q_head_stride
    q = tl.load(q_row[:, None] + column[None, :], mask=row_mask[:, None] & (column < DIM)[None, :], other=0.0)
    # The tile's tokens see keys begin .. end - 1; all of them see those from all_begin to all_end.
    end = first_position + tl.minimum(TOKENS, num_tokens - start)
    begin = 0
    all_begin = 0
    all_end = first_position + 1
    if WINDOW > 0:
        begin = tl.maximum(0, first_position - WINDOW + 1)
        all_begin = end - WINDOW
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    first = begin // KEYS * KEYS
    written = tl.minimum(end, tl.load(seq_lens_ptr + seq) // KEYS * KEYS)  # a tile before it has no key without a token
    block = tl.load(table_ptr + first // BLOCK_SIZE)
    for key in tl.range(first, written, KEYS, num_stages=STAGES):
        if k_pages is not None:
            vector = (block * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE
            k = k_pages.load([vector, 0]).T
            v = v_pages.load([vector, 0])
            # Loaded a tile ahead: a load that the copies above depend on would halve the depth of their pipeline.
            block = tl.load(table_ptr + (key + KEYS) // BLOCK_SIZE, mask=key + KEYS < end, other=0)
        else:
            k, v = _load_tile(k_cache_ptr, v_cache_ptr, table_ptr, kv_head, key, begin, end,
                              KV_HEADS, DIM, BLOCK_DIM, BLOCK_SIZE, KEYS)
        scores = tl.dot(q, k, input_precision="ieee")
        if (key < all_begin) | (key + KEYS > all_end):
            scores = _mask(scores, key, first_position, GROUP, ROWS, KEYS, WINDOW)
        weights, decay, peak = _softmax(scores, peak, scale_log2)
        total = total * decay + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        if WAIT:  # a use of acc, for which the compiler must wait
            acc = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [acc], tl.float32, is_pure=True, pack=1)
    # Asked again, so that the loop need not keep it in registers.
    start, first_position, query_row, head, row_mask = _rows(
        cu_seqlens_q_ptr, seq_lens_ptr, first_seq, seq, tile, kv_head, GROUP, TOKENS, ROWS)
    if written < end:  # the sequence's last tile of keys, full in part: what lies behind its end may be NaN
        k, v = _load_tile(k_cache_ptr, v_cache_ptr, table_ptr, kv_head, written, begin, end,
                          KV_HEADS, DIM, BLOCK_DIM, BLOCK_SIZE, KEYS)
        scores = tl.dot(q, k, input_precision="ieee")
        scores = _mask(scores, written, first_position, GROUP, ROWS, KEYS, WINDOW)
        weights, decay, peak = _softmax(scores, peak, scale_log2)
        total = total * decay + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out = out_ptr + ((query_row * (KV_HEADS * GROUP) + head) * DIM)[:, None] + column[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=row_mask[:, None] & (column < DIM)[None, :])


@triton.jit
def _rows(
    cu_seqlens_q_ptr, seq_lens_ptr, first_seq, seq, tile, kv_head,
    GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):
    """The tile's first token in its sequence and its position; each row's token in the batch, query head and mask."""
    first_token = tl.load(cu_seqlens_q_ptr + seq)
    num_tokens = tl.load(cu_seqlens_q_ptr + seq + 1) - first_token
    start = (tile - (first_token - first_seq) // TOKENS - (seq - first_seq)) * TOKENS
    first_position = tl.load(seq_lens_ptr + seq) - num_tokens + start
    row = tl.arange(0, ROWS)
    token = start + row // GROUP
    row_mask = (row < TOKENS * GROUP) & (token < num_tokens)
    return start, first_position, (first_token + token).to(tl.int64), kv_head * GROUP + row % GROUP, row_mask


@triton.jit
def _load_tile(
    k_cache_ptr, v_cache_ptr, table_ptr, kv_head, first, begin, end,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
):
    """k [BLOCK_DIM, KEYS] and v [KEYS, BLOCK_DIM] from key `first` on; 0, and not read, outside begin .. end - 1."""
    key = first + tl.arange(0, KEYS)
    key_mask = (key >= begin) & (key < end)
    column = tl.arange(0, BLOCK_DIM)
    block = tl.load(table_ptr + key // BLOCK_SIZE, mask=key_mask, other=0).to(tl.int64)
    vector = ((block * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE) * DIM
    k = tl.load(k_cache_ptr + vector[None, :] + column[:, None],
                mask=key_mask[None, :] & (column < DIM)[:, None], other=0.0)
    v = tl.load(v_cache_ptr + vector[:, None] + column[None, :],
                mask=key_mask[:, None] & (column < DIM)[None, :], other=0.0)
    return k, v


@triton.jit
def _mask(scores, first_key, first_position, GROUP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
          WINDOW: tl.constexpr):
    """-inf where a row does not see a key."""
    key = first_key + tl.arange(0, KEYS)
    position = first_position + tl.arange(0, ROWS) // GROUP
    seen = key[None, :] <= position[:, None]
    if WINDOW > 0:
        seen &= key[None, :] > position[:, None] - WINDOW
    return tl.where(seen, scores, -float("inf"))


@triton.jit
def _softmax(scores, peak, scale_log2):
    """The keys' weights exp2((score - peak) * scale_log2), what earlier weights shrink by, and the new peak."""
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = tl.where(new_peak == -float("inf"), 0.0, new_peak) * scale_log2  # no key seen yet: keep -inf - -inf away
    return tl.exp2(scores * scale_log2 - base[:, None]), tl.exp2(peak * scale_log2 - base), new_peak
