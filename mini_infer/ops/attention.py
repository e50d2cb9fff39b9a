"""Paged attention over a ragged batch: prompt chunks, decode tokens and drafts in one call."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
    sequence sees keys 0 .. p; under a sliding window w only those with p - w < j <= p. Tokens beyond
    `cu_seqlens_q[B]` (a graph's padding) get anything.
    """
    return _paged_attention_torch(q, k_cache, v_cache, batch, scale, sliding_window)


def _paged_attention_torch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: ForwardBatch,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    num_kv_heads, block_size, head_dim = k_cache.shape[1:]
    out = torch.empty_like(q)
    starts, lens = batch.cu_seqlens_q.tolist(), batch.seq_lens.tolist()
    tables = batch.block_table[batch.slots.long()]
    for b, (start, end, length) in enumerate(zip(starts, starts[1:], lens, strict=False)):
        n = end - start
        if n == 0:
            continue
        first = max(0, length - n - sliding_window + 1) // block_size if sliding_window is not None else 0
        pages = tables[b, first : -(-length // block_size)]
        keys = k_cache[pages].transpose(0, 1).reshape(num_kv_heads, -1, head_dim)
        values = v_cache[pages].transpose(0, 1).reshape(num_kv_heads, -1, head_dim)
        query_pos = torch.arange(length - n, length)[:, None]
        key_pos = torch.arange(first * block_size, first * block_size + keys.shape[1])[None, :]
        mask = key_pos <= query_pos
        if sliding_window is not None:
            mask &= key_pos > query_pos - sliding_window
        heads = q[start:end].view(n, num_kv_heads, -1, head_dim).permute(2, 1, 0, 3)  # [G, Hkv, n, D]
        group = heads.shape[0]
        attended = F.scaled_dot_product_attention(heads, keys.expand(group, -1, -1, -1),
                                                  values.expand(group, -1, -1, -1), attn_mask=mask, scale=scale)
        out[start:end] = attended.permute(2, 1, 0, 3).reshape(n, -1, head_dim)
    return out
