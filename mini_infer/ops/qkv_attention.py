"""Attention straight from what the QKV matmul left: heads normed and rotated, keys and values cached, then attended to.

Several ops for prompts, one kernel where every sequence has one token and the GPU would wait for the next launch longer
than the separate ops take.
"""

from __future__ import annotations

import math

import torch

from mini_infer.ops.attention import paged_attention
from mini_infer.ops.attention_split import FromQKV, launch_split
from mini_infer.ops.dispatch import use_triton
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.kv_write import qkv_to_cache


def qkv_attention(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    batch: ForwardBatch,
    table: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    between_early: bool = False,
) -> torch.Tensor:
    """`paged_attention` of the queries that `qkv_to_cache` makes of qkv [T, (Hq + 2 Hkv) D] -> [T, Hq, D].

    The arguments are those of the two; the caches hold the step's keys and values afterwards.
    `between_early`: the matmuls before and after start early (ops/pdl.py).
    """
    if use_triton(qkv) and batch.max_query_len == 1:
        heads = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim)
        out = qkv.new_empty(batch.num_tokens, num_heads, head_dim)
        launch_split(out, heads, k_cache, v_cache, batch, scale * math.log2(math.e), sliding_window or 0,
                     FromQKV(table, q_norm, k_norm, eps), between_early)
        return out
    q = qkv_to_cache(qkv, num_heads, num_kv_heads, head_dim, batch.positions, batch.slot_mapping, table, k_cache,
                     v_cache, q_norm, k_norm, eps, batch.shared)
    return paged_attention(q, k_cache, v_cache, batch, scale, sliding_window)
