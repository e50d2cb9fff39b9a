"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): the table of angles and the rotation.

Scaled variants: position interpolation ("linear", Chen et al. 2023, arXiv:2306.15595), NTK-aware ("dynamic"), "llama3",
and "yarn" (Peng et al. 2023, arXiv:2309.00071). The formulas give transformers' numbers.
"""

from __future__ import annotations

import math

import torch

from mini_infer.config import RopeConfig


def cos_sin_table(rope: RopeConfig, head_dim: int, max_len: int, device: torch.device | str) -> torch.Tensor:
    """The angles of positions 0 .. max_len - 1: float32 [max_len, head_dim], cosines in the left half, sines in the right.

    yarn's attention scaling is folded into both. "dynamic" stretches the base with the length of the longest sequence:
    one table serves all requests here, so the stretch is that of `max_len`, and none up to the original context length.
    """
    inv_freq, scaling = _inv_freq(rope, head_dim, max_len)
    angles = torch.arange(max_len, dtype=torch.float32)[:, None] * inv_freq
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * scaling).to(device)


def apply_rope(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, D] by its tokens' positions [T]: dimension i pairs with i + D / 2. Returns a new tensor."""
    return _apply_rope_torch(x, positions, table)


def _apply_rope_torch(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def _inv_freq(rope: RopeConfig, head_dim: int, max_len: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of dimensions [head_dim / 2], and the factor on cosines and sines."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    if rope.rope_type == "dynamic":
        original = rope.original_max_position_embeddings or max_len
        stretch = rope.factor * max(max_len, original) / original - (rope.factor - 1)
        return 1.0 / (rope.theta * stretch ** (head_dim / (head_dim - 2))) ** exponents, 1.0
    inv_freq = 1.0 / rope.theta**exponents
    if rope.rope_type == "linear":
        return inv_freq / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3_inv_freq(rope, inv_freq), 1.0
    if rope.rope_type == "yarn":
        return _yarn_inv_freq(rope, head_dim), _yarn_attention_factor(rope)
    return inv_freq, 1.0


def _llama3_inv_freq(rope: RopeConfig, inv_freq: torch.Tensor) -> torch.Tensor:
    """Long wavelengths slow down by `factor`, short ones stay, those between blend linearly in 1 / wavelength."""
    original = rope.original_max_position_embeddings
    assert original is not None
    turns = original * inv_freq / (2 * math.pi)  # within the original context
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return inv_freq * (keep + (1 - keep) / rope.factor)


def _yarn_inv_freq(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Dimensions turning more than beta_fast times in the original context stay, below beta_slow they slow down."""
    original = rope.original_max_position_embeddings
    assert original is not None

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    slow = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inv_freq = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return inv_freq * (1 - slow) + inv_freq / rope.factor * slow


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
