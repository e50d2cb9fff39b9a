"""A compact Qwen3 decoder for training: packed documents, no KV cache, names as in Hugging Face checkpoints."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model; every size is a multiple of 64, and the heads divide by 2 for tensor parallelism."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int = 4096
    head_dim: int = 64
    rope_theta: float = 10000.0
    max_positions: int = 2048
    eps: float = 1e-6


MAIN = ModelConfig(hidden=384, layers=6, heads=8, kv_heads=2, intermediate=896)
DRAFT = ModelConfig(hidden=128, layers=3, heads=2, kv_heads=2, intermediate=512)
TINY = ModelConfig(hidden=64, layers=2, heads=2, kv_heads=2, intermediate=128)  # for smoke tests


@dataclass(frozen=True)
class Packing:
    """Where the documents lie in a packed row of tokens."""

    starts: Tensor  # cumulative lengths, int32, padded at the end with the total
    positions: Tensor  # position of each token within its document
    longest: int  # upper bound of the documents' length


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm in float32, as Qwen3 does it."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * y).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``(tokens, heads, head_dim)`` in the half-split layout."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Causal attention within documents. Flash attention on a GPU; elsewhere a plain masked one, for smoke tests."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(
            q, k, v, packing.starts, packing.starts, packing.longest, packing.longest, window_size=(-1, 0)
        )
    tokens = torch.arange(q.shape[0])
    document = torch.searchsorted(packing.starts[1:].contiguous(), tokens.int(), right=True)
    mask = (document[:, None] == document[None, :]) & (tokens[:, None] >= tokens[None, :])
    out = F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask)
    return out.transpose(0, 1)


class Attention(nn.Module):
    """Grouped-query attention with a norm on each head of queries and keys."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.q_proj = nn.Linear(cfg.hidden, cfg.heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden, cfg.kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden, cfg.kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.hidden, bias=False)
        self.q_norm = Norm(cfg.head_dim, cfg.eps)
        self.k_norm = Norm(cfg.head_dim, cfg.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, packing: Packing) -> Tensor:
        cfg = self.cfg
        q = rotate(self.q_norm(self.q_proj(x).view(-1, cfg.heads, cfg.head_dim)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(-1, cfg.kv_heads, cfg.head_dim)), cos, sin)
        v = self.v_proj(x).view(-1, cfg.kv_heads, cfg.head_dim)
        return self.o_proj(attend(q, k, v, packing).reshape(-1, cfg.heads * cfg.head_dim))


class Norm(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden, cfg.intermediate, bias=False)
        self.up_proj = nn.Linear(cfg.hidden, cfg.intermediate, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate, cfg.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(cfg.hidden, cfg.eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = Norm(cfg.hidden, cfg.eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, packing: Packing) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, packing)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The whole model; input and output share their embedding."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab, cfg.hidden)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.norm = Norm(cfg.hidden, cfg.eps)
        frequencies = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angles = torch.arange(cfg.max_positions)[:, None] * frequencies[None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Small random weights; the matrices that write into the residual stream start at nearly zero."""
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, weight in self.layers.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=std * (0.1 if writes else 0.7))

    def forward(self, tokens: Tensor, packing: Packing) -> Tensor:
        """Hidden states after the last norm, ``(tokens, hidden)``."""
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[packing.positions][:, None, :], self.sin[packing.positions][:, None, :]
        if x.is_cuda:
            x = x.bfloat16()  # the residual stream; the weights stay in float32 and are cast by autocast
        for layer in self.layers:
            x = layer(x, cos, sin, packing)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token."""
        return F.linear(hidden, self.embed_tokens.weight)


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy, weighted by token."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, weights: Tensor) -> Tensor:
    """KL divergence from the teacher, weighted by token."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_q = F.log_softmax(teacher_logits.float(), dim=-1)
    losses = (log_q.exp() * (log_q - log_p)).sum(-1)
    return (losses * weights).sum() / weights.sum()
