"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): the table of angles and the rotation.

Scaled variants: position interpolation ("linear", Chen et al. 2023, arXiv:2306.15595), NTK-aware ("dynamic"), "llama3",
and "yarn" (Peng et al. 2023, arXiv:2309.00071). The formulas give transformers' numbers.
"""

from __future__ import annotations

import math

import torch

from mini_infer.config import RopeConfig
from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton


def cos_sin_table(rope: RopeConfig, head_dim: int, max_len: int, device: torch.device | str) -> torch.Tensor:
    """The angles of positions 0 .. max_len - 1: float32 [max_len, head_dim], cosines left, sines right.

    yarn's attention scaling is folded into both. "dynamic" stretches the base with the length of the longest sequence:
    one table serves all requests here, so the stretch is that of `max_len`, and none up to the original context length.
    """
    inv_freq, scaling = _inv_freq(rope, head_dim, max_len)
    angles = torch.arange(max_len, dtype=torch.float32)[:, None] * inv_freq
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * scaling).to(device)


def apply_rope(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, D] by its tokens' positions int32 [T]; dimension i pairs with i + D / 2. A new tensor.

    `table` is `cos_sin_table`'s; x may be a strided view whose last dimension is contiguous.
    """
    return _apply_rope_triton(x, positions, table) if use_triton(x) else _apply_rope_torch(x, positions, table)


def _apply_rope_torch(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return _rotate_torch(x.float(), *_rotations_torch(positions, table)).to(x.dtype)


def _rotations_torch(positions: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_rotate_torch` multiplies x and its exchanged halves by: float32 [T, 1, D] each."""
    cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _rotate_torch(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, D], float32: two passes over it, and one that exchanges the halves."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def _apply_rope_triton(x: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    num_tokens, num_heads, head_dim = x.shape
    out = x.new_empty(x.shape)
    heads = min(8, next_power_of_2(num_heads))
    if num_tokens:
        _apply_rope_kernel[(num_tokens, cdiv(num_heads, heads))](
            x, positions, table, out, x.stride(0), x.stride(1), num_heads,
            HALF=head_dim // 2, BLOCK_HALF=next_power_of_2(head_dim // 2), HEADS=heads, num_warps=2,
        )
    return out


@triton.jit(do_not_specialize=["num_heads"])
def _apply_rope_kernel(
    x_ptr, positions_ptr, table_ptr, out_ptr, token_stride, head_stride, num_heads,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HEADS: tl.constexpr,
):
    """A program rotates HEADS heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK_HALF)
    mask = (head < num_heads)[:, None] & (column < HALF)[None, :]
    cos, sin = load_cos_sin(table_ptr, tl.load(positions_ptr + token), HALF, BLOCK_HALF)
    source = x_ptr + token * token_stride + head[:, None] * head_stride + column[None, :]
    left = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    target = out_ptr + (token * num_heads + head[:, None]) * (2 * HALF) + column[None, :]
    tl.store(target, (left * cos - right * sin).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (right * cos + left * sin).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_cos_sin(table_ptr, position, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """A position's row of the table: cosines and sines, float32 [1, BLOCK_HALF] each."""
    column = tl.arange(0, BLOCK_HALF)
    row = table_ptr + position.to(tl.int64) * (2 * HALF) + column
    cos = tl.load(row, mask=column < HALF, other=0.0)
    sin = tl.load(row + HALF, mask=column < HALF, other=0.0)
    return cos[None, :], sin[None, :]


# In float32 the last bit of a frequency is worth 1e-2 radians at position 100,000, so the formulas below keep the order
# of transformers' operations and give its frequencies to the bit.


def _inv_freq(rope: RopeConfig, head_dim: int, max_len: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair of dimensions [head_dim / 2], and the factor on cosines and sines."""
    theta = rope.theta
    if rope.rope_type == "dynamic":
        original = rope.original_max_position_embeddings or max_len
        stretch = rope.factor * max(max_len, original) / original - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    wavelengths = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # in positions / 2 pi
    if rope.rope_type == "yarn":
        return _yarn_inv_freq(rope, head_dim, wavelengths), _yarn_attention_factor(rope)
    inv_freq = 1.0 / wavelengths
    if rope.rope_type == "linear":
        inv_freq /= rope.factor
    if rope.rope_type == "llama3":
        inv_freq = _llama3_inv_freq(rope, inv_freq)
    return inv_freq, 1.0


def _llama3_inv_freq(rope: RopeConfig, inv_freq: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones stay; between, it blends linearly in 1 / wavelength."""
    original = rope.original_max_position_embeddings
    assert original is not None
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelengths = 2 * math.pi / inv_freq
    keep = (original / wavelengths - low) / (high - low)
    blended = (1 - keep) * inv_freq / rope.factor + keep * inv_freq
    stretched = torch.where(wavelengths > original / low, inv_freq / rope.factor, blended)
    return torch.where(wavelengths < original / high, inv_freq, stretched)


def _yarn_inv_freq(rope: RopeConfig, head_dim: int, wavelengths: torch.Tensor) -> torch.Tensor:
    """What turns over beta_fast times in the original context stays, what turns under beta_slow is stretched."""
    original = rope.original_max_position_embeddings
    assert original is not None

    def dimension(turns: float) -> float:
        return (head_dim * math.log(original / (turns * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    keep = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (rope.factor * wavelengths) * (1 - keep) + 1.0 / wavelengths * keep


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """The factor on cosines and sines that sharpens attention over the longer context."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
