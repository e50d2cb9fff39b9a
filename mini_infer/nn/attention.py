"""Self-attention of a decoder layer over the paged cache: multi-head, grouped-query and multi-query alike."""

from __future__ import annotations

import torch
from torch import nn

from mini_infer.config import ModelConfig
from mini_infer.nn.linear import Linear, MergedLinear
from mini_infer.nn.norm import RMSNorm
from mini_infer.ops.inputs import ForwardBatch
from mini_infer.ops.qkv_attention import qkv_attention
from mini_infer.ops.stream import Stream

KVCache = tuple[torch.Tensor, torch.Tensor]  # k and v of one layer, each [num_blocks + 1, Hkv, block_size, D]


class Attention(nn.Module):
    """QKV as one matmul; QK-norm where the model has it, RoPE and the cache write as one op; attention; output."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype):
        super().__init__()
        q_size, kv_size = config.q_size, config.kv_size
        self.qkv_proj = MergedLinear(config.hidden_size, {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
                                     config.qkv_bias, dtype)
        self.o_proj = Linear(q_size, config.hidden_size, config.o_bias, dtype)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype) if config.qk_norm else None
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.norm_eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.sliding_window = config.sliding_windows[layer]

    def forward(
        self, stream: Stream, norm: RMSNorm, next_norm: RMSNorm | None, batch: ForwardBatch, rope_table: torch.Tensor,
        kv_cache: KVCache, wanted: torch.Tensor | None = None,
    ) -> None:
        """stream [T, H] += attention(norm(stream)); with `wanted`, int32 [R], only these tokens stay in it, [R, H].

        `next_norm` reads the stream next. The keys and values of the step's tokens are in the cache afterwards.
        """
        k_cache, v_cache = kv_cache
        q_norm = self.q_norm.weight if self.q_norm is not None else None
        k_norm = self.k_norm.weight if self.k_norm is not None else None
        qkv = self.qkv_proj.of_norm(stream, norm)
        out = qkv_attention(qkv, self.num_heads, self.num_kv_heads, self.head_dim, batch, rope_table, k_cache, v_cache,
                            self.scale, self.sliding_window, q_norm, k_norm, self.norm_eps,
                            self.qkv_proj.starts_early(len(qkv)) and self.o_proj.starts_early(len(qkv)))
        if wanted is not None:
            stream.value, out = stream.value[wanted], out[wanted]
        self.o_proj.add_to(stream, out.flatten(1), next_norm)
