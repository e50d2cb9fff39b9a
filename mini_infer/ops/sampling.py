"""From logits to token ids: greedy, or exact sampling at a temperature with top-k, top-p and min-p.

On a GPU no softmax is written to memory and nothing is sorted.

A draw is hierarchical. The vocabulary is cut into chunks; each chunk's maximum and sum of exponentials are found in
parallel; one uniform draws the chunk by the inverse of the chunks' cumulative distribution, a second uniform draws the
token inside that chunk the same way. The product of the two probabilities is the softmax's, exactly.

Top-k, top-p and min-p are one number a row, and the draw ignores what lies below it (ops/filters.py).

The uniforms come from (request key, position), so a token does not depend on the batch it was drawn in (ops/random.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton
from mini_infer.ops.filters import load_float, load_logits, thresholds_torch, thresholds_triton, weigh
from mini_infer.ops.random import two_uniforms, two_uniforms_kernel
from mini_infer.ops.sampling_params import KEY_HIGH, KEY_LOW, TEMPERATURE, RowParams, row_params

CHUNK = 1024  # tokens a chunk; part of a seed's meaning: another value draws other tokens
CHUNKS_OF_PROGRAM = 4  # enough loads under way to keep the memory busy, and few enough programs
INVALID_TOKEN = -1  # the row's logits were unusable


@dataclass(frozen=True)
class SamplingNeeds:
    """What the rows of a step need, known on the host: it chooses the kernels (and the CUDA graph) of the step."""

    random: bool = False  # some row has a temperature; else all are greedy
    filtered: bool = False  # some row with a temperature has top_k, top_p or min_p


def sample(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, needs: SamplingNeeds
) -> torch.Tensor:
    """Choose one token a row.

    `logits` [R, V] float32, bfloat16 or float16; `slots` int32 [R], each row's row in `params`; `positions` int32 [R],
    the position that the chosen token will have in its sequence; `params` int32 [num_slots + 1, 16]
    (ops/sampling_params.py). `needs` must cover every row; it may ask for more than they need.

    Returns int32 [R]. Greedy rows (temperature 0) get the lowest id among the largest logits. A row with a NaN or +inf,
    or with nothing but -inf, gets `INVALID_TOKEN`. Never synchronises with the host on a GPU.
    """
    if use_triton(logits):
        return _sample_triton(logits, slots, positions, params, needs)
    return _sample_torch(logits, slots, positions, params, needs)


# ----------------------------------------------------------------------------------------------------- torch reference


def _sample_torch(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, needs: SamplingNeeds
) -> torch.Tensor:
    logits = logits.float()
    if not needs.random:
        return _greedy(logits)
    p = row_params(params, slots)
    greedy = p.temperature == 0
    tokens = _draw_hierarchical(logits, p, positions, needs.filtered)
    if bool(greedy.any()):
        tokens = torch.where(greedy, _greedy(logits), tokens)
    return tokens


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.cpu().numpy()  # numpy finds a maximum several times faster than torch
    tokens = rows.argmax(-1)  # the first NaN, if there is one
    valid = np.isfinite(rows[np.arange(len(rows)), tokens])
    return torch.from_numpy(np.where(valid, tokens, INVALID_TOKEN).astype(np.int32)).to(logits.device)


def _draw_hierarchical(logits: torch.Tensor, p: RowParams, positions: torch.Tensor, filtered: bool) -> torch.Tensor:
    num_rows = logits.shape[0]
    weights = (logits * (1 / p.temperature)[:, None]).softmax(-1)
    valid = weights[:, 0].isfinite()  # NaN and +inf spread over the whole row, and so does having nothing but -inf
    if filtered:
        weights.mul_(logits >= thresholds_torch(logits, weights, p)[:, None])
    if weights.shape[1] % CHUNK:
        weights = F.pad(weights, (0, -weights.shape[1] % CHUNK))
    chunks = weights.view(num_rows, -1, CHUNK)
    u1, u2 = two_uniforms(p.key, positions)
    chunk = _draw_index(chunks.sum(-1), u1)
    token = chunk * CHUNK + _draw_index(chunks[torch.arange(num_rows, device=logits.device), chunk], u2)
    return torch.where(valid, token, INVALID_TOKEN).int()


def _draw_index(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[R, N] weights, [R] uniforms -> int64 [R]: the first index whose cumulative weight exceeds u times the total."""
    cumulative = weights.cumsum(-1)
    target = cumulative[:, -1:] * u[:, None]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=weights.shape[1] - 1)


# ------------------------------------------------------------------------------------------------------------- Triton


def _sample_triton(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, needs: SamplingNeeds
) -> torch.Tensor:
    num_rows, vocab_size = logits.shape
    num_chunks = cdiv(vocab_size, CHUNK)
    thresholds = thresholds_triton(logits, slots, params) if needs.filtered else None
    chunk_max = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    chunk_sum = torch.empty_like(chunk_max) if needs.random else None
    tokens = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    _chunk_kernel[(cdiv(num_chunks, CHUNKS_OF_PROGRAM), num_rows)](
        logits, logits.stride(0), slots, params, params.stride(0), thresholds, chunk_max, chunk_sum, vocab_size,
        num_chunks, RANDOM=needs.random, FILTERED=needs.filtered, CHUNK=CHUNK, CHUNKS=CHUNKS_OF_PROGRAM)
    _choose_kernel[(num_rows,)](
        logits, logits.stride(0), slots, positions, params, params.stride(0), thresholds, chunk_max, chunk_sum, tokens,
        vocab_size, num_chunks, RANDOM=needs.random, FILTERED=needs.filtered, CHUNK=CHUNK,
        CHUNKS=next_power_of_2(num_chunks))
    return tokens


@triton.jit
def _chunk_kernel(
    logits_ptr, logits_stride, slots_ptr, params_ptr, params_stride, thresholds_ptr, chunk_max_ptr, chunk_sum_ptr,
    vocab_size, num_chunks, RANDOM: tl.constexpr, FILTERED: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):
    """One program: CHUNKS chunks of a row; each one's largest logit and its sum of exponentials relative to that.

    A greedy row among others has no need of the sums.
    """
    chunk = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    row = tl.program_id(1).to(tl.int64)
    temperature = 0.0
    if RANDOM:
        slot = tl.load(slots_ptr + row).to(tl.int64)
        temperature = load_float(params_ptr, slot, params_stride, TEMPERATURE)
    tokens = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = load_logits(logits_ptr + row * logits_stride, tokens, vocab_size)
    top = tl.max(x, axis=1)
    out = row * num_chunks + chunk
    tl.store(chunk_max_ptr + out, top, mask=chunk < num_chunks)
    if RANDOM and temperature > 0:
        threshold = float("-inf")
        if FILTERED:
            threshold = tl.load(thresholds_ptr + row)
        sums = tl.sum(weigh(x, top[:, None], 1 / temperature, threshold), axis=1)
        tl.store(chunk_sum_ptr + out, sums, mask=chunk < num_chunks)


@triton.jit
def _draw_index_kernel(weights, u, index, N: tl.constexpr):
    """The first index whose cumulative weight exceeds u times the total, always one of positive weight.

    A parallel prefix sum may fall by a rounding error, so the index is searched for, not counted.
    """
    cumulative = tl.cumsum(weights, axis=0)
    positive = weights > 0
    first = tl.min(tl.where(positive & (cumulative > u * tl.max(cumulative, axis=0)), index, N), axis=0)
    last = tl.max(tl.where(positive, index, 0), axis=0)
    return tl.where(first < N, first, last)


@triton.jit
def _choose_kernel(
    logits_ptr, logits_stride, slots_ptr, positions_ptr, params_ptr, params_stride, thresholds_ptr, chunk_max_ptr,
    chunk_sum_ptr, tokens_ptr, vocab_size, num_chunks,
    RANDOM: tl.constexpr, FILTERED: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):
    """One program a row: choose the chunk, then the token inside it."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    stats = row * num_chunks + chunks
    chunk_max = tl.load(chunk_max_ptr + stats, mask=chunks < num_chunks, other=float("-inf"))
    top = tl.max(chunk_max, axis=0)
    chunk = tl.argmax(chunk_max, axis=0)
    tokens = tl.arange(0, CHUNK)
    row_ptr = logits_ptr + row * logits_stride
    if RANDOM:
        slot = tl.load(slots_ptr + row).to(tl.int64)
        temperature = load_float(params_ptr, slot, params_stride, TEMPERATURE)
        inverse_temperature = tl.where(temperature > 0, 1 / temperature, 0.0)
        threshold = float("-inf")
        if FILTERED:
            threshold = tl.load(thresholds_ptr + row)
        u1, u2 = two_uniforms_kernel(
            tl.load(params_ptr + slot * params_stride + KEY_LOW), tl.load(params_ptr + slot * params_stride + KEY_HIGH),
            tl.load(positions_ptr + row))
        chunk_sum = tl.load(chunk_sum_ptr + stats, mask=chunks < num_chunks, other=0.0)
        scale = weigh(chunk_max, top, inverse_temperature, float("-inf"))
        chunk = tl.where(temperature > 0, _draw_index_kernel(chunk_sum * scale, u1, chunks, CHUNKS), chunk)
        x = load_logits(row_ptr, chunk * CHUNK + tokens, vocab_size)
        weights = weigh(x, tl.max(x, axis=0), inverse_temperature, threshold)
        token = tl.where(temperature > 0, _draw_index_kernel(weights, u2, tokens, CHUNK), tl.argmax(x, axis=0))
    else:
        token = tl.argmax(load_logits(row_ptr, chunk * CHUNK + tokens, vocab_size), axis=0)
    usable = (top > float("-inf")) & (top < float("inf"))
    tl.store(tokens_ptr + row, tl.where(usable, chunk * CHUNK + token, -1))


__all__ = ["CHUNK", "INVALID_TOKEN", "SamplingNeeds", "sample"]
