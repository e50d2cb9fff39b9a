"""Random numbers from (key, position): no state, so a token's draw does not depend on its batch or on what came before.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
used as a counter: output number `position` of the stream that starts at `key` is mix64(key + (position + 1) * GOLDEN).
A request's key is its seed, mixed once on the host so that neighbouring seeds start far apart.
"""

from __future__ import annotations

import torch

from mini_infer.ops.dispatch import tl, triton

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB
MASK64 = 2**64 - 1


def mix64(z: int) -> int:
    """SplitMix64's finaliser on the host: a bijection of [0, 2^64) in which every input bit moves half the output's."""
    z &= MASK64
    z = ((z ^ (z >> 30)) * MULTIPLIER_1) & MASK64
    z = ((z ^ (z >> 27)) * MULTIPLIER_2) & MASK64
    return z ^ (z >> 31)


def request_key(seed: int | None, engine_seed: int, request_id: int) -> int:
    """The 64-bit key of a request: from its own seed, or else from the engine's seed and its id."""
    if seed is not None:
        return mix64(seed)
    return mix64(mix64(engine_seed) + (request_id + 1) * GOLDEN)


def _signed(z: int) -> int:
    """The int64 with the same bits, for torch."""
    return z - 2**64 if z >= 2**63 else z


def random_bits(key: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """64 random bits per row as int64: `key` int64 [R], `position` integer [R]. int64 wraps as uint64 does."""
    z = torch.add(key, position.long() + 1, alpha=_signed(GOLDEN))
    z = (z ^ ((z >> 30) & (MASK64 >> 30))) * _signed(MULTIPLIER_1)  # the masks make the arithmetic shifts logical
    z = (z ^ ((z >> 27) & (MASK64 >> 27))) * _signed(MULTIPLIER_2)
    return z ^ ((z >> 31) & (MASK64 >> 31))


def two_uniforms(key: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent uniforms of 24 bits in [0, 1), float32 [R] each, from the high and the low half of the bits.

    24 bits are what a float32 holds exactly, so no rounding can make a 1.
    """
    halves = random_bits(key, position)[:, None] >> torch.tensor([40, 8], device=key.device)
    u1, u2 = (halves & 0xFFFFFF).float().mul_(2**-24).unbind(1)
    return u1, u2


@triton.jit
def two_uniforms_kernel(key_low, key_high, position):
    """`two_uniforms` inside a kernel: int32 scalars (or tensors of one shape) in, bit-identical float32 out."""
    key = (key_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | key_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    z = key + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    u1 = (z >> 40).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    u2 = ((z >> 8) & 0xFFFFFF).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    return u1, u2


__all__ = ["mix64", "random_bits", "request_key", "two_uniforms", "two_uniforms_kernel"]
