"""Paged attention over a ragged batch: prompt chunks, decode tokens and drafts in one call.

Two Triton kernels loop over the pages of one sequence and one KV head, with the query heads of that KV head packed into
the rows of a tile:

- the ragged kernel (attention_ragged.py): a program owns a tile of query tokens of any sequence;
- the split kernel (attention_split.py), for sequences of one token: a program owns a stretch of one sequence's keys
  (Flash-Decoding), and a small kernel merges the stretches.

Chunks that fill large tiles have a faster one in CUDA C++ on Hopper, where it is built (cuda_attention.py). Which one
runs follows from integers that the host knows; no kernel waits for the host, so CUDA graphs can hold them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from mini_infer.ops import cuda_attention, native
from mini_infer.ops.attention_ragged import launch_ragged
from mini_infer.ops.attention_split import launch_split
from mini_infer.ops.dispatch import use_triton
from mini_infer.ops.inputs import ForwardBatch

# Beside chunks, decode tokens with contexts up to this go through Triton's ragged kernel, where reading their keys and
# computing the chunks overlap; a longer context would keep one program busy after all others have ended.
LONG_CONTEXT = 4096


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
    if use_triton(q):
        run = _paged_attention_triton
    else:
        run = native.paged_attention if native.use_native_attention(q, batch) else _paged_attention_torch
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
    """The calls that a step's attention takes, the same in all its layers. The batch holds it, so it does not hold the
    batch: what goes in a circle stays, with all its tensors, until the garbage collector comes."""

    def __init__(self, batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None, dtype: torch.dtype):
        self._num_tokens = batch.num_tokens
        self._block_table = batch.block_table
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
        table = self._block_table[slot : slot + 1, first_block : -(-length // block_size)]
        mask = None
        if n > 1 and (first_key > 0 or length > n or window is not None):
            query_pos = torch.arange(length - n, length)[:, None]
            key_pos = torch.arange(first_key, length)
            seen = key_pos <= query_pos
            if window is not None:
                seen &= key_pos > query_pos - window
            mask = self._mask(seen)
        keys = slice(first_key - first_block * block_size, length - first_block * block_size)
        tokens = None if n == self._num_tokens else slice(begin, end)
        return _Call([b], tokens, self._pages(table), keys, mask)

    def _together(self, group: list[int]) -> _Call:
        """A call for sequences with a token each, their keys padded to those of the longest."""
        window, block_size = self._window, self._block_size
        tokens, slots = None, torch.tensor([self._slots[b] for b in group])
        if len(group) < self._num_tokens:  # else it is 0 .. B - 1 in order
            tokens = torch.tensor([self._starts[b] for b in group])
        lens = [self._lens[b] for b in group]
        ends = torch.tensor(lens, dtype=torch.int32)[:, None]
        if window is None or max(lens) <= window:
            num_pages = -(-max(lens) // block_size)
            table = self._block_table[:, :num_pages].index_select(0, slots)
            seen = torch.arange(num_pages * block_size, dtype=torch.int32) < ends
        else:
            first_blocks = (ends - window).clamp_(min=0) // block_size
            max_blocks = self._block_table.shape[1]
            num_pages = min(-(-window // block_size) + 1, max_blocks)
            columns = first_blocks + torch.arange(num_pages)
            table = self._block_table[slots[:, None], columns.clamp(max=max_blocks - 1)]
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
    caches, scale_log2, window = (k_cache, v_cache), scale * math.log2(math.e), sliding_window or 0
    if batch.max_query_len == 1:
        launch_split(out, q, *caches, batch, scale_log2, window)
        return out
    by_cuda = cuda_attention.can_attend(q, k_cache, batch, window)
    num_split = batch.num_decodes if by_cuda or batch.max_seq_len > LONG_CONTEXT else 0
    if num_split:
        launch_split(out, q, *caches, replace(batch, num_seqs=num_split), scale_log2, window)
    if by_cuda:
        cuda_attention.launch_chunks(out, q, *caches, batch, scale_log2, first_seq=num_split)
    else:
        launch_ragged(out, q, *caches, batch, scale_log2, window, first_seq=num_split)
    return out
