"""The gated MLP of a decoder layer."""

from __future__ import annotations

import torch
from torch import nn

from mini_infer.config import ModelConfig
from mini_infer.nn.linear import Linear, MergedLinear
from mini_infer.nn.norm import RMSNorm
from mini_infer.ops.stream import Stream


class GatedMLP(nn.Module):
    """down(SiLU(gate(x)) * up(x)), SwiGLU (Shazeer 2020, arXiv:2002.05202); gate and up are one matmul."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = MergedLinear(hidden, {"gate_proj": inner, "up_proj": inner}, bias, dtype)
        self.down_proj = Linear(inner, hidden, bias, dtype)

    def forward(self, stream: Stream, norm: RMSNorm, next_norm: RMSNorm | None) -> None:
        """stream [T, H] += MLP(norm(stream)). `next_norm` reads the stream next."""
        self.down_proj.add_to(stream, self.gate_up_proj.swiglu_of_norm(stream, norm), next_norm)
