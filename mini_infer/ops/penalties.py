"""Repetition, presence and frequency penalties, computed anew at each step from the device's token table.

No counts are kept between steps, so nothing can go stale when a request is preempted, or when tokens are in flight that
the host has not seen. Repetition (Keskar et al., "CTRL", 2019) looks at prompt and output; presence and frequency
(OpenAI's) at the output alone, as in vLLM.
"""

from __future__ import annotations

import torch

from mini_infer.ops.dispatch import cdiv, tl, triton, use_triton
from mini_infer.ops.sampling_params import (
    FREQUENCY_PENALTY,
    PRESENCE_PENALTY,
    PROMPT_LEN,
    REPETITION_PENALTY,
    row_params,
)


def apply_penalties(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, token_ids: torch.Tensor
) -> None:
    """Penalise, in place, the tokens that a row's sequence already holds.

    `logits` float32 [R, V]; `slots` int32 [R]; `positions` int32 [R], the number of tokens that the row's sequence has
    so far; `params` int32 [num_slots + 1, 16]; `token_ids` int32 [num_slots + 1, L], may be strided. Ids outside
    [0, V) in the table are passed over.
    """
    if use_triton(logits):
        _apply_penalties_triton(logits, slots, positions, params, token_ids)
    else:
        _apply_penalties_torch(logits, slots, positions, params, token_ids)


def _apply_penalties_torch(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, token_ids: torch.Tensor
) -> None:
    p = row_params(params, slots)
    length = int(positions.max())
    tokens = token_ids[:, :length].index_select(0, slots).long()
    column = torch.arange(length, device=logits.device)
    known = (column < positions[:, None]) & (tokens >= 0) & (tokens < logits.shape[1])
    output = known & (column >= p.prompt_len[:, None])
    tokens.masked_fill_(~known, 0)
    seen = torch.zeros_like(logits).scatter_add_(1, tokens, known.float()) > 0
    counts = torch.zeros_like(logits).scatter_add_(1, tokens, output.float())
    repetition = p.repetition_penalty[:, None]
    logits.copy_(torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits))
    logits.sub_(counts * p.frequency_penalty[:, None]).sub_((counts > 0) * p.presence_penalty[:, None])


def _apply_penalties_triton(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, token_ids: torch.Tensor
) -> None:
    num_rows, vocab_size = logits.shape
    length, block = token_ids.shape[1], 1024
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=logits.device)
    _count_kernel[(num_rows, cdiv(length, block))](
        slots, positions, params, params.stride(0), token_ids, token_ids.stride(0), counts, vocab_size, BLOCK=block)
    _penalise_kernel[(num_rows, cdiv(vocab_size, block))](
        logits, logits.stride(0), slots, params, params.stride(0), counts, vocab_size, BLOCK=block)


@triton.jit
def _count_kernel(
    slots_ptr, positions_ptr, params_ptr, params_stride, token_ids_ptr, token_ids_stride, counts_ptr, vocab_size,
    BLOCK: tl.constexpr,
):
    """One program a (row, piece of its sequence): outputs are counted in the low bits; bit 30 marks a prompt token."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    prompt_len = tl.load(params_ptr + slot * params_stride + PROMPT_LEN)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < tl.load(positions_ptr + row)
    token = tl.load(token_ids_ptr + slot * token_ids_stride + column, mask=known, other=-1)
    known = known & (token >= 0) & (token < vocab_size)
    count = counts_ptr + row * vocab_size + token
    tl.atomic_add(count, 1, mask=known & (column >= prompt_len), sem="relaxed")
    tl.atomic_or(count, 1 << 30, mask=known & (column < prompt_len), sem="relaxed")


@triton.jit
def _penalise_kernel(
    logits_ptr, logits_stride, slots_ptr, params_ptr, params_stride, counts_ptr, vocab_size, BLOCK: tl.constexpr
):
    """One program a (row, piece of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    word = params_ptr + tl.load(slots_ptr + row).to(tl.int64) * params_stride
    repetition = tl.load(word + REPETITION_PENALTY).to(tl.float32, bitcast=True)
    presence = tl.load(word + PRESENCE_PENALTY).to(tl.float32, bitcast=True)
    frequency = tl.load(word + FREQUENCY_PENALTY).to(tl.float32, bitcast=True)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab_size
    seen = tl.load(counts_ptr + row * vocab_size + token, mask=inside, other=0)
    count = seen & ((1 << 30) - 1)
    x = tl.load(logits_ptr + row * logits_stride + token, mask=inside, other=0.0)
    x = tl.where(seen > 0, tl.where(x > 0, x / repetition, x * repetition), x)
    x = x - count.to(tl.float32) * frequency - tl.where(count > 0, presence, 0.0)
    tl.store(logits_ptr + row * logits_stride + token, x, mask=inside)


__all__ = ["apply_penalties"]
