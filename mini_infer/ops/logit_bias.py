"""What a request adds to single tokens' logits before sampling: biases, banned words, and a set of allowed tokens.

Each takes only the rows that need it, as float32 copies, and changes them in place. A ban is a bias of -inf.
"""

from __future__ import annotations

import numpy as np
import torch

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton

NO_TOKEN = -1  # pads the short ones among the banned words


def add_bias(
    logits: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor,
    until: torch.Tensor,
) -> None:
    """logits[rows[e], tokens[e]] += values[e] for each entry e while positions[rows[e]] < until[e], in place.

    `logits` float32 [R, V]; `positions` int32 [R]; `rows`, `tokens`, `until` int32 [E]; `values` float32 [E]. `until`
    lifts a ban when enough tokens are there (min_tokens); the largest int32 means always.
    """
    if use_triton(logits):
        _add_bias_triton(logits, positions, rows, tokens, values, until)
    else:
        _add_bias_torch(logits, positions, rows, tokens, values, until)


def _add_bias_torch(
    logits: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor,
    until: torch.Tensor,
) -> None:
    active = positions[rows] < until
    logits.index_put_((rows, tokens), torch.where(active, values, 0.0), accumulate=True)


def _add_bias_triton(
    logits: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor,
    until: torch.Tensor,
) -> None:
    num_entries = rows.numel()
    _add_bias_kernel[(cdiv(num_entries, 256),)](
        logits, logits.stride(0), positions, rows, tokens, values, until, num_entries, BLOCK=256)


@triton.jit
def _add_bias_kernel(
    logits_ptr, logits_stride, positions_ptr, rows_ptr, tokens_ptr, values_ptr, until_ptr, num_entries,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < num_entries
    row = tl.load(rows_ptr + entry, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions_ptr + row, mask=inside, other=0)
    active = inside & (position < tl.load(until_ptr + entry, mask=inside, other=0))
    token = tl.load(tokens_ptr + entry, mask=active, other=0)
    value = tl.load(values_ptr + entry, mask=active, other=0.0)
    # A token may have two entries, a bias and a ban; atomics keep both.
    tl.atomic_add(logits_ptr + row * logits_stride + token, value, mask=active, sem="relaxed")


def ban_words(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor, rows: torch.Tensor,
    words: torch.Tensor,
) -> None:
    """Ban, in place, each token that would complete one of its row's banned words.

    `logits` float32 [R, V]; `slots`, `positions` int32 [R]; `token_ids` int32 [num_slots + 1, L], may be strided;
    `rows` int32 [W]; `words` int32 [W, N], each row a word's tokens, filled up from the left with `NO_TOKEN`. A word's
    last token is banned where the tokens before `positions` (prompt included) end with the word's other tokens.
    """
    if use_triton(logits):
        _ban_words_triton(logits, slots, positions, token_ids, rows, words)
    else:
        _ban_words_torch(logits, slots, positions, token_ids, rows, words)


def _ban_words_torch(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor, rows: torch.Tensor,
    words: torch.Tensor,
) -> None:
    start, last = words[:, :-1], words[:, -1]
    column = positions[rows][:, None] + torch.arange(-start.shape[1], 0, device=logits.device)
    tail = token_ids[slots[rows][:, None], column.clamp(min=0)]
    completes = ((start == NO_TOKEN) | ((tail == start) & (column >= 0))).all(-1)
    logits.index_put_((rows, last), torch.where(completes, -torch.inf, 0.0), accumulate=True)


def _ban_words_triton(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor, rows: torch.Tensor,
    words: torch.Tensor,
) -> None:
    num_words, width = words.shape
    _ban_words_kernel[(num_words,)](
        logits, logits.stride(0), slots, positions, token_ids, token_ids.stride(0), rows, words, width,
        BLOCK=next_power_of_2(width))


@triton.jit
def _ban_words_kernel(
    logits_ptr, logits_stride, slots_ptr, positions_ptr, token_ids_ptr, token_ids_stride, rows_ptr, words_ptr, width,
    BLOCK: tl.constexpr,
):
    """One program a word."""
    word = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + word).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    offset = tl.arange(0, BLOCK)
    start = tl.load(words_ptr + word * width + offset, mask=offset < width - 1, other=-1)
    column = tl.load(positions_ptr + row) - (width - 1) + offset
    compared = start != -1
    tail = tl.load(token_ids_ptr + slot * token_ids_stride + column, mask=compared & (column >= 0), other=-1)
    if tl.sum((compared & (tail != start)).to(tl.int32), axis=0) == 0:
        last = tl.load(words_ptr + word * width + width - 1)
        tl.store(logits_ptr + row * logits_stride + last, float("-inf"))


def keep_allowed(logits: torch.Tensor, slots: torch.Tensor, allowed: torch.Tensor) -> None:
    """Ban, in place, every token whose bit is not set.

    `logits` float32 [R, V]; `slots` int32 [R]; `allowed` int32 [num_slots + 1, ceil(V / 32)]: bit t % 32 of word
    t // 32 says whether token t may be chosen.
    """
    if use_triton(logits):
        _keep_allowed_triton(logits, slots, allowed)
    else:
        _keep_allowed_torch(logits, slots, allowed)


def _keep_allowed_torch(logits: torch.Tensor, slots: torch.Tensor, allowed: torch.Tensor) -> None:
    words = allowed.index_select(0, slots).cpu().numpy()  # numpy unpacks bits several times faster than torch
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    logits.masked_fill_(torch.from_numpy(bits == 0).to(logits.device), -torch.inf)


def _keep_allowed_triton(logits: torch.Tensor, slots: torch.Tensor, allowed: torch.Tensor) -> None:
    num_rows, vocab_size = logits.shape
    _keep_allowed_kernel[(num_rows, cdiv(vocab_size, 1024))](
        logits, logits.stride(0), slots, allowed, allowed.stride(0), vocab_size, BLOCK=1024)


@triton.jit
def _keep_allowed_kernel(
    logits_ptr, logits_stride, slots_ptr, allowed_ptr, allowed_stride, vocab_size, BLOCK: tl.constexpr
):
    """One program a (row, piece of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab_size
    word = tl.load(allowed_ptr + slot * allowed_stride + token // 32, mask=inside, other=0)
    banned = ((word >> (token % 32)) & 1) == 0
    tl.store(logits_ptr + row * logits_stride + token, float("-inf"), mask=inside & banned)


__all__ = ["NO_TOKEN", "add_bias", "ban_words", "keep_allowed"]
