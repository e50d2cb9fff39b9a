"""Attention when every sequence has one token: a program owns a stretch of one sequence's keys (Flash-Decoding,
Dao et al. 2023), and a small kernel merges the stretches.

The kernel takes queries whose keys and values are in the cache already, or (`FromQKV`) what the QKV matmul left: then
each program normalises and rotates its own query heads, and the one whose stretch ends with the newest token does the
same to its key, writes key and value into the cache and attends to them from registers. All other keys it reads are of
earlier steps, so that loads of them need not wait for the matmul.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.kv_write import cache_offset
from mini_infer.ops.pdl import let_next_start, pdl_options, wait_for_previous


@dataclass(frozen=True)
class Tile:
    """What a program works on at a time, and how."""

    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Split:
    """How the keys of a step are shared out: `keys` to a program, which takes `tile.keys` of them at a time."""

    keys: int
    tile: Tile


@dataclass(frozen=True)
class EarlySplit:
    """Where programs that start early are given so many keys: by the longest context, and how many programs there are
    anyhow."""

    longest: int
    fewest: int
    most: int
    keys: int


MANY = 1 << 30
TENSOR_CORE_ROWS = 16  # that they take at a time; a KV head's query heads are repeated to fill them
# Bytes of an element and head_dim rounded up to a power of two, to what fits an H200's shared memory.
SPLIT_TILES = {
    (2, 64): Tile(32, 2, 5),
    (2, 128): Tile(32, 2, 5),
    (2, 256): Tile(64, 4, 3),
    (4, 64): Tile(32, 4, 3),
    (4, 128): Tile(32, 4, 3),
    (4, 256): Tile(16, 4, 2),
}
# Where there are so many programs that several share a multiprocessor and hide each other's latency; 2-byte elements
# and head_dim up to 128.
SMALL_TILE = Tile(16, 1, 5)
WHOLE = 4096  # keys; contexts up to this are not split
# By the step's longest context, then by how many sequences x KV heads there are, the programs that there are anyhow:
# keys to a program, and whether the small tile is better. Few programs need short splits to fill the GPU, many need
# long ones to have little to merge, and a long context is split whatever is beside it. Measured on an H200 with the
# lengths of a real run, even ones and skewed ones (benchmarks/LOG.md).
SPLITS = (
    (1024, ((16, 128, False), (64, 256, False), (255, 512, False), (511, WHOLE, False), (MANY, WHOLE, True))),
    (WHOLE, ((16, 128, False), (64, 256, False), (255, 512, False), (1400, WHOLE, False), (MANY, WHOLE, True))),
    (MANY, ((16, 128, False), (64, 512, True), (MANY, 1024, False))),
)
# A program that starts early goes where the kernel before leaves room, so some multiprocessors get two and others none;
# more and shorter programs even that out (benchmarks/LOG.md, 101).
EARLY = EarlySplit(longest=1024, fewest=65, most=256, keys=128)
MOST_SPLITS = 32  # of one sequence, where the table would cut a very long one into more than that
# Where kernels start early (ops/pdl.py), and while the step's longest context makes no more programs than this, each
# has a single tile, all of it loaded at once.
ONE_TILE_PROGRAMS = 1056  # eight to a multiprocessor of an H200
ONE_TILE = Tile(64, 2, 1)
MERGE_SPLITS = 16  # splits that the merging kernel reads at a time


@dataclass(frozen=True)
class FromQKV:
    """What turns qkv [T, Hq + 2 Hkv, D] into queries, keys and values (kv_write.qkv_to_cache says how)."""

    rope_table: torch.Tensor  # float32 [positions, D]
    q_norm: torch.Tensor | None  # [D], with k_norm or not at all
    k_norm: torch.Tensor | None
    eps: float


def launch_split(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale_log2: float,
    window: int,
    from_qkv: FromQKV | None = None,
    between_early: bool = False,
) -> None:
    """q [T, Hq, D] (or, `from_qkv`, [T, Hq + 2 Hkv, D]) -> out [T, Hq, D]. `between_early`: of ops/pdl.py."""
    num_heads, head_dim = out.shape[1:]
    num_kv_heads, block_size = k_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_dim, block_group = next_power_of_2(head_dim), next_power_of_2(group)
    # Splits count from the first key that a sequence sees, so a window bounds their number.
    longest = min(batch.max_seq_len, window) if window else batch.max_seq_len
    programs = batch.num_seqs * num_kv_heads
    small = q.element_size() == 2 and block_dim <= 128
    pdl = pdl_options(q, batch.num_tokens, between_early)
    one_tile = (from_qkv is not None and small and not window and pdl["PDL"]
                and ONE_TILE.keys <= block_size and programs * cdiv(longest, ONE_TILE.keys) <= ONE_TILE_PROGRAMS)
    if one_tile:
        split = Split(ONE_TILE.keys, ONE_TILE)
    else:  # beside chunks one tile does: no more kernels to compile
        split = choose_split(programs, longest, SPLIT_TILES[q.element_size(), block_dim],
                             SMALL_TILE if small and from_qkv else None, pdl["PDL"])
    tile, split_keys = split.tile, split.keys
    num_splits = max(1, cdiv(longest, split_keys))
    # Sequences that fit one split write `out` directly, so that the scratch is only used by those that do not.
    partial = torch.empty((batch.num_seqs, num_heads, num_splits, head_dim) if num_splits > 1 else 1,
                          dtype=torch.float32, device=q.device)
    partial_lse = torch.empty((batch.num_seqs, num_heads, num_splits) if num_splits > 1 else 1,
                              dtype=torch.float32, device=q.device)
    norm = from_qkv is not None and from_qkv.q_norm is not None
    _split_kernel[(num_kv_heads, batch.num_seqs, num_splits)](
        out, partial, partial_lse, q, k_cache, v_cache, batch.cu_seqlens_q, batch.seq_lens, batch.slots,
        batch.block_table, from_qkv.rope_table if from_qkv else q, from_qkv.q_norm if from_qkv and norm else q,
        from_qkv.k_norm if from_qkv and norm else q, num_splits, split_keys, q.stride(0), q.stride(1),
        batch.block_table.stride(0), scale_log2, from_qkv.eps if from_qkv else 0.0,
        GROUP=group, KV_HEADS=num_kv_heads, DIM=head_dim, BLOCK_DIM=block_dim, BLOCK_SIZE=block_size,
        BLOCK_GROUP=block_group, REPEAT=max(1, TENSOR_CORE_ROWS // block_group), KEYS=tile.keys, WINDOW=window,
        ONE_TILE=one_tile, FROM_QKV=from_qkv is not None, NORM=norm, **pdl,
        num_warps=tile.warps, num_stages=tile.stages,
    )
    if num_splits > 1:
        _merge_kernel[(batch.num_seqs, num_heads)](
            out, partial, partial_lse, batch.cu_seqlens_q, batch.seq_lens, num_splits, split_keys,
            HEADS=num_heads, DIM=head_dim, BLOCK_DIM=block_dim, WINDOW=window,
            SPLITS=MERGE_SPLITS, **pdl, num_warps=2,
        )


def choose_split(programs: int, longest: int, tile: Tile, small_tile: Tile | None, starts_early: bool = False) -> Split:
    """The table's choice; `small_tile`, if there is one, where the table says so."""
    if starts_early and longest <= EARLY.longest and EARLY.fewest <= programs <= EARLY.most:
        return Split(EARLY.keys, tile)
    rows = next(rows for most, rows in SPLITS if longest <= most)
    keys, use_small = next((keys, use_small) for most, keys, use_small in rows if programs <= most)
    if programs > 16:
        keys = max(keys, next_power_of_2(cdiv(longest, MOST_SPLITS)))
    return Split(keys, small_tile if small_tile and use_small else tile)


def distinct_bounds(num_seqs: int, num_kv_heads: int, bounds: Sequence[int]) -> list[int]:
    """Of some bounds on the longest context, ascending, those that change what is launched for such a batch, early or
    not: the others' launch is that of the next larger bound. (Windows and one tile a program would allow fewer
    still.)"""
    kept: list[list[tuple[Split, int]]] = []
    found = []
    for bound in reversed(bounds):
        splits = [choose_split(num_seqs * num_kv_heads, bound, ONE_TILE, SMALL_TILE, early) for early in (False, True)]
        launches = [(split, cdiv(bound, split.keys)) for split in splits]
        if launches not in kept:
            kept.append(launches)
            found.append(bound)
    return found[::-1]


@triton.jit(do_not_specialize=["num_splits", "split_keys"])
def _split_kernel(
    out_ptr, partial_ptr, partial_lse_ptr, q_ptr, k_cache_ptr, v_cache_ptr, cu_seqlens_q_ptr, seq_lens_ptr, slots_ptr,
    block_table_ptr, rope_table_ptr, q_norm_ptr, k_norm_ptr, num_splits, split_keys, q_token_stride, q_head_stride,
    table_stride, scale_log2, eps,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr, REPEAT: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, ONE_TILE: tl.constexpr,
    FROM_QKV: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):
    """A program: the one query token of a sequence x the GROUP query heads of one KV head, over one split of keys.

    The heads are repeated to fill the rows that the tensor cores take at a time.
    """
    ROWS: tl.constexpr = REPEAT * BLOCK_GROUP
    let_next_start(PDL)
    kv_head = tl.program_id(0)
    seq = tl.num_programs(1) - 1 - tl.program_id(1)  # long contexts come last: with these begun, short ones fill gaps
    split = tl.program_id(2)
    length = tl.load(seq_lens_ptr + seq)
    first = _first_key(length, WINDOW)
    begin = first + split * split_keys
    if (begin >= length) & (split > 0):  # split 0 of an empty padding sequence still writes its row
        return
    end = tl.minimum(length, begin + split_keys)
    newest = end == length
    if FROM_QKV:
        end = tl.minimum(length - 1, end)  # all but the newest, which no cache holds yet
    table = block_table_ptr + tl.load(slots_ptr + seq).to(tl.int64) * table_stride
    column = tl.arange(0, BLOCK_DIM)
    query_row = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
    head_of_group = tl.arange(0, BLOCK_GROUP)[:, None]
    q_row = q_ptr + query_row * q_token_stride + (kv_head * GROUP + head_of_group) * q_head_stride
    q_mask = (head_of_group < GROUP) & (column < DIM)[None, :]
    position = tl.maximum(length - 1, 0)  # the newest token's
    if FROM_QKV:
        q_own, q_other = _rotation(rope_table_ptr, position, q_norm_ptr, DIM, BLOCK_DIM, NORM)
        k_own, k_other = _rotation(rope_table_ptr, position, k_norm_ptr, DIM, BLOCK_DIM, NORM)
    else:
        wait_for_previous(PDL)  # for the newest key
    first_tile = begin // KEYS * KEYS
    if ONE_TILE:
        k, v, seen = _load_tile(k_cache_ptr, v_cache_ptr, table, first_tile, begin, end, kv_head, KV_HEADS, DIM,
                                BLOCK_DIM, BLOCK_SIZE, KEYS)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    if FROM_QKV:
        wait_for_previous(PDL)
        partner = tl.where(column < DIM // 2, column + DIM // 2, column - DIM // 2)[None, :]
        new_row = q_ptr + query_row * q_token_stride + (KV_HEADS * GROUP + kv_head) * q_head_stride
        new_mask = (column < tl.where(newest, DIM, 0))[None, :]
        q = tl.load(q_row + column[None, :], mask=q_mask, other=0.0)
        q_partner = tl.load(q_row + partner, mask=q_mask, other=0.0)  # loaded twice, so that no element has to move
        new_k = tl.load(new_row + column[None, :], mask=new_mask, other=0.0)
        new_k_partner = tl.load(new_row + partner, mask=new_mask, other=0.0)
        new_v = tl.load(new_row + KV_HEADS * q_head_stride + column[None, :], mask=new_mask, other=0.0)
        q = _rotated(q, q_partner, q_own, q_other, eps, DIM, NORM)
        new_k = _rotated(new_k, new_k_partner, k_own, k_other, eps, DIM, NORM)
        slot = tl.load(table + position // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        place = cache_offset(slot, kv_head, KV_HEADS, DIM, BLOCK_SIZE)
        tl.store(k_cache_ptr + place + column[None, :], new_k, mask=new_mask)
        tl.store(v_cache_ptr + place + column[None, :], new_v, mask=new_mask)
        if newest:
            score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), axis=1)
            peak = tl.reshape(_repeated(score[:, None], REPEAT), [ROWS]) * scale_log2
            total += 1.0
            acc += new_v.to(tl.float32)
    else:
        q = tl.load(q_row + column[None, :], mask=q_mask, other=0.0)
    q = _repeated(q, REPEAT)
    if ONE_TILE:
        acc, total, peak = _attend_to_tile(acc, total, peak, q, k, v, seen, scale_log2)
    else:
        for start in range(first_tile, end, KEYS):
            k, v, seen = _load_tile(k_cache_ptr, v_cache_ptr, table, start, begin, end, kv_head, KV_HEADS, DIM,
                                    BLOCK_DIM, BLOCK_SIZE, KEYS)
            acc, total, peak = _attend_to_tile(acc, total, peak, q, k, v, seen, scale_log2)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    row = tl.arange(0, ROWS)
    head = kv_head * GROUP + row
    mask = (row < GROUP)[:, None] & (column < DIM)[None, :]
    if length - first <= split_keys:
        out = out_ptr + (query_row * (KV_HEADS * GROUP) + head)[:, None] * DIM + column[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        part = (seq.to(tl.int64) * (KV_HEADS * GROUP) + head) * num_splits + split
        tl.store(partial_ptr + part[:, None] * DIM + column[None, :], acc, mask=mask)
        tl.store(partial_lse_ptr + part, peak + tl.log2(total), mask=row < GROUP)


@triton.jit
def _repeated(x, REPEAT: tl.constexpr):
    """x [G, D] repeated along its first dimension: [REPEAT * G, D]."""
    return tl.reshape(tl.broadcast_to(x[None, :, :], [REPEAT, x.shape[0], x.shape[1]]),
                      [REPEAT * x.shape[0], x.shape[1]])


@triton.jit
def _load_tile(
    k_cache_ptr, v_cache_ptr, table, start, begin, end, kv_head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
):
    """Of the KEYS keys from `start` on, those in begin .. end - 1: k and v [KEYS, BLOCK_DIM], and which they are."""
    column = tl.arange(0, BLOCK_DIM)
    key = start + tl.arange(0, KEYS)
    seen = (key >= begin) & (key < end)
    if KEYS <= BLOCK_SIZE:  # the tile lies in one page
        page = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
    else:
        page = tl.load(table + key // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
    offset = ((page * KV_HEADS + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE)[:, None] * DIM + column[None, :]
    mask = seen[:, None] & (column < DIM)[None, :]
    return (tl.load(k_cache_ptr + offset, mask=mask, other=0.0), tl.load(v_cache_ptr + offset, mask=mask, other=0.0),
            seen)


@triton.jit
def _attend_to_tile(acc, total, peak, q, k, v, seen, scale_log2):
    """One step of the online softmax in base 2: values weighted by exp2(score - peak), their weights' sum, the peak."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(seen[None, :], scores, -float("inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    base = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # no key seen yet: keep -inf - -inf away
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(peak - base)
    total = total * decay + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, total, new_peak


@triton.jit
def _rotation(
    table_ptr, position, norm_ptr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, NORM: tl.constexpr
):
    """What RoPE multiplies each dimension and its partner by, norm weights included: float32 [1, BLOCK_DIM] each."""
    HALF: tl.constexpr = DIM // 2
    column = tl.arange(0, BLOCK_DIM)
    row = table_ptr + position.to(tl.int64) * DIM + column % HALF
    own = tl.load(row, mask=column < DIM, other=0.0)
    other = tl.load(row + HALF, mask=column < DIM, other=0.0)
    other = tl.where(column < HALF, -other, other)
    if NORM:
        partner = tl.where(column < HALF, column + HALF, column - HALF)
        own *= tl.load(norm_ptr + column, mask=column < DIM, other=0.0).to(tl.float32)
        other *= tl.load(norm_ptr + partner, mask=column < DIM, other=0.0).to(tl.float32)
    return own[None, :], other[None, :]


@triton.jit
def _rotated(x, partner, own, other, eps, DIM: tl.constexpr, NORM: tl.constexpr):
    """Heads x [R, BLOCK_DIM], `partner` being the same with its halves exchanged: normed if asked, and rotated."""
    x32 = x.to(tl.float32)
    y = x32 * own + partner.to(tl.float32) * other
    if NORM:
        y *= (1.0 / tl.sqrt(tl.sum(x32 * x32, axis=1) / DIM + eps))[:, None]
    return y.to(x.dtype)


@triton.jit(do_not_specialize=["num_splits", "split_keys"])
def _merge_kernel(
    out_ptr, partial_ptr, partial_lse_ptr, cu_seqlens_q_ptr, seq_lens_ptr, num_splits, split_keys,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):
    """A program: the splits of one sequence and head, weighted by their log-sum-exps, in a fixed order."""
    let_next_start(PDL)
    seq = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(seq_lens_ptr + seq)
    used = tl.cdiv(length - _first_key(length, WINDOW), split_keys)
    query_row = tl.load(cu_seqlens_q_ptr + seq).to(tl.int64)
    wait_for_previous(PDL)
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
        values = tl.load(partial_ptr + (part + split)[:, None] * DIM + column[None, :],
                         mask=(split < used)[:, None] & column_mask[None, :], other=0.0)
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))  # finite: a split in use has a key
        weight = tl.exp2(lse - new_peak)
        decay = tl.exp2(peak - new_peak)
        acc = acc * decay + tl.sum(values * weight[:, None], axis=0)
        total = total * decay + tl.sum(weight, axis=0)
        peak = new_peak
    out = out_ptr + (query_row * HEADS + head) * DIM + column
    tl.store(out, (acc / total).to(out_ptr.dtype.element_ty), mask=column_mask)


@triton.jit
def _first_key(length, WINDOW: tl.constexpr):
    """The first key that the last token of a sequence sees."""
    first = length * 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    return first
