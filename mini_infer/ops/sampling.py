"""From logits to token ids: greedy, or exact sampling at a temperature with top-k, top-p and min-p.

On a GPU no softmax is written to memory and nothing is sorted.

A draw is hierarchical. The vocabulary is cut into chunks; each chunk's maximum and sum of exponentials are found in
parallel; one uniform draws the chunk by the inverse of the chunks' cumulative distribution, a second uniform draws the
token inside that chunk the same way. The product of the two probabilities is the softmax's, exactly.

A filter is a threshold: what top-k, top-p and min-p keep is always "every logit of at least t" (tokens tied with the
last one kept are kept too), so each row needs one number t and the draw ignores what lies below. Order, as in Hugging
Face and vLLM: temperature, min-p, top-k, top-p, each on what the ones before left.

The uniforms come from (request key, position), so a token does not depend on the batch it was drawn in (ops/random.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton, use_triton
from mini_infer.ops.random import two_uniforms, two_uniforms_kernel
from mini_infer.ops.sampling_params import KEY_HIGH, KEY_LOW, MIN_P, TEMPERATURE, TOP_K, TOP_P, RowParams, row_params

CHUNK = 1024  # tokens a chunk; part of a seed's meaning: another value draws other tokens
CHUNKS_OF_PROGRAM = 4  # enough loads under way to keep the memory busy, and few enough programs
INVALID_TOKEN = -1  # the row's logits were unusable
REFERENCE_CANDIDATES = 256  # the torch reference looks for thresholds among this many largest logits first


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
        weights.mul_(logits >= _thresholds_torch(logits, weights, p)[:, None])
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


def _thresholds_torch(logits: torch.Tensor, weights: torch.Tensor, p: RowParams) -> torch.Tensor:
    """The smallest logit that each row keeps, float32 [R]; -inf for rows that filter nothing.

    `weights` are the probabilities at the row's temperature.
    """
    thresholds = torch.full_like(p.temperature, -torch.inf)
    rows = ((p.temperature > 0) & ((p.top_k > 0) | (p.top_p < 1) | (p.min_p > 0))).nonzero().squeeze(1)
    # The cut is nearly always among the few largest logits; rows whose cut lies deeper are sorted whole.
    for width in (REFERENCE_CANDIDATES, logits.shape[1]):
        if rows.numel():
            values, found = _thresholds_among_largest(
                logits.index_select(0, rows), weights.index_select(0, rows), p.temperature[rows], p.top_k[rows],
                p.top_p[rows], p.min_p[rows], min(width, logits.shape[1]))
            thresholds[rows] = values
            rows = rows[~found]
    return thresholds


def _thresholds_among_largest(
    logits: torch.Tensor, weights: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
    min_p: torch.Tensor, width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The thresholds [R] if they can be told from the `width` largest logits, and whether they can (bool [R])."""
    largest, tokens = logits.topk(width)
    threshold = largest[:, 0] + temperature * min_p.log()  # p >= min_p * p_max, in logits; log(0) is -inf
    kth = largest.gather(1, (top_k.long() - 1).clamp(0, width - 1)[:, None]).squeeze(1)
    threshold = torch.where(top_k > 0, torch.maximum(threshold, kth), threshold)
    kept = weights.gather(1, tokens).mul_(largest >= threshold[:, None])
    nothing_cut = threshold == -torch.inf
    target = top_p * torch.where(nothing_cut, 1, kept.sum(-1))
    before_cut = (kept.cumsum(-1) < target[:, None]).sum(-1)
    nucleus = largest.gather(1, before_cut.clamp(max=width - 1)[:, None]).squeeze(1)
    threshold_and_nucleus = torch.where(top_p < 1, torch.maximum(threshold, nucleus), threshold)
    if width == logits.shape[1]:
        return threshold_and_nucleus, torch.ones_like(nothing_cut)
    nucleus_found = (nothing_cut | (threshold > largest[:, -1])) & (before_cut < width)
    return threshold_and_nucleus, (top_k <= width) & ((top_p == 1) | nucleus_found)


# ------------------------------------------------------------------------------------------------------------- Triton


def _sample_triton(
    logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor, needs: SamplingNeeds
) -> torch.Tensor:
    num_rows, vocab_size = logits.shape
    num_chunks = cdiv(vocab_size, CHUNK)
    thresholds = _thresholds_triton(logits, slots, params) if needs.filtered else None
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


def _thresholds_triton(logits: torch.Tensor, slots: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """The smallest logit that each row keeps, float32 [R]; -inf for rows that filter nothing."""
    num_rows, vocab_size = logits.shape
    thresholds = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    spare_bits = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}[logits.dtype]
    _threshold_kernel[(num_rows,)](
        logits, logits.stride(0), slots, params, params.stride(0), thresholds, vocab_size,
        SPARE_BITS=spare_bits, BLOCK=min(8192, next_power_of_2(vocab_size)), num_warps=16)
    return thresholds


@triton.jit
def _load_float(params_ptr, slot, params_stride, column: tl.constexpr):
    return tl.load(params_ptr + slot * params_stride + column).to(tl.float32, bitcast=True)


@triton.jit
def _load_logits(row_ptr, token, vocab_size):
    """Logits as float32: -inf beyond the vocabulary, and NaN as +inf, which marks a row as unusable."""
    x = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("inf"), x)


@triton.jit
def _weigh(x, top, inverse_temperature, threshold):
    """Unnormalised probabilities; zero below the threshold and for -inf (also where `top` is -inf)."""
    return tl.where((x >= threshold) & (x > float("-inf")), tl.exp((x - top) * inverse_temperature), 0.0)


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
        temperature = _load_float(params_ptr, slot, params_stride, TEMPERATURE)
    tokens = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = _load_logits(logits_ptr + row * logits_stride, tokens, vocab_size)
    top = tl.max(x, axis=1)
    out = row * num_chunks + chunk
    tl.store(chunk_max_ptr + out, top, mask=chunk < num_chunks)
    if RANDOM and temperature > 0:
        threshold = float("-inf")
        if FILTERED:
            threshold = tl.load(thresholds_ptr + row)
        sums = tl.sum(_weigh(x, top[:, None], 1 / temperature, threshold), axis=1)
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
        temperature = _load_float(params_ptr, slot, params_stride, TEMPERATURE)
        inverse_temperature = tl.where(temperature > 0, 1 / temperature, 0.0)
        threshold = float("-inf")
        if FILTERED:
            threshold = tl.load(thresholds_ptr + row)
        u1, u2 = two_uniforms_kernel(
            tl.load(params_ptr + slot * params_stride + KEY_LOW), tl.load(params_ptr + slot * params_stride + KEY_HIGH),
            tl.load(positions_ptr + row))
        chunk_sum = tl.load(chunk_sum_ptr + stats, mask=chunks < num_chunks, other=0.0)
        scale = _weigh(chunk_max, top, inverse_temperature, float("-inf"))
        chunk = tl.where(temperature > 0, _draw_index_kernel(chunk_sum * scale, u1, chunks, CHUNKS), chunk)
        x = _load_logits(row_ptr, chunk * CHUNK + tokens, vocab_size)
        weights = _weigh(x, tl.max(x, axis=0), inverse_temperature, threshold)
        token = tl.where(temperature > 0, _draw_index_kernel(weights, u2, tokens, CHUNK), tl.argmax(x, axis=0))
    else:
        token = tl.argmax(_load_logits(row_ptr, chunk * CHUNK + tokens, vocab_size), axis=0)
    usable = (top > float("-inf")) & (top < float("inf"))
    tl.store(tokens_ptr + row, tl.where(usable, chunk * CHUNK + token, -1))


@triton.jit
def _sort_key(x):
    """uint32 in the order of the floats: negative floats have all bits flipped, the others the sign bit."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, ~bits, bits | 0x80000000)


@triton.jit
def _key_value(key, SPARE_BITS: tl.constexpr):
    """The float of a key whose low bits were not searched; in a float that came from a narrower dtype they are zero."""
    bits = tl.where(key >> 31 != 0, key & 0x7FFFFFFF, ~(key | ((1 << SPARE_BITS) - 1)))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _kth_largest(row_ptr, vocab_size, k, SPARE_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th largest logit: its key is built bit by bit, from the highest, as the largest key that k logits reach."""
    key = tl.full((), 0, tl.uint32)
    for i in range(32 - SPARE_BITS):
        candidate = key | (tl.full((), 0x80000000, tl.uint32) >> i)
        count = tl.zeros([BLOCK], tl.int32)
        for start in range(0, vocab_size, BLOCK):
            x = _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab_size)
            count += (_sort_key(x) >= candidate).to(tl.int32)
        key = tl.where(tl.sum(count, axis=0) >= k, candidate, key)
    return _key_value(key, SPARE_BITS)


@triton.jit
def _nucleus(
    row_ptr, vocab_size, top_p, top, inverse_temperature, floor, SPARE_BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest logit t such that those in [t, inf) hold at least `top_p` of the mass of those in [floor, inf)."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        x = _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab_size)
        mass += _weigh(x, top, inverse_temperature, floor)
    target = top_p * tl.sum(mass, axis=0)
    key = tl.full((), 0, tl.uint32)
    for i in range(32 - SPARE_BITS):
        candidate = key | (tl.full((), 0x80000000, tl.uint32) >> i)
        mass = tl.zeros([BLOCK], tl.float32)
        for start in range(0, vocab_size, BLOCK):
            x = _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab_size)
            mass += tl.where(_sort_key(x) >= candidate, _weigh(x, top, inverse_temperature, floor), 0.0)
        key = tl.where(tl.sum(mass, axis=0) >= target, candidate, key)
    return _key_value(key, SPARE_BITS)


@triton.jit
def _threshold_kernel(
    logits_ptr, logits_stride, slots_ptr, params_ptr, params_stride, thresholds_ptr, vocab_size,
    SPARE_BITS: tl.constexpr, BLOCK: tl.constexpr,
):
    """One program a row; rows that filter nothing read no logits."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    temperature = _load_float(params_ptr, slot, params_stride, TEMPERATURE)
    top_k = tl.load(params_ptr + slot * params_stride + TOP_K)
    top_p = _load_float(params_ptr, slot, params_stride, TOP_P)
    min_p = _load_float(params_ptr, slot, params_stride, MIN_P)
    row_ptr = logits_ptr + row * logits_stride
    threshold = tl.full((), float("-inf"), tl.float32)
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        largest = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            largest = tl.maximum(largest, _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab_size))
        top = tl.max(largest, axis=0)
        if min_p > 0:
            threshold = top + temperature * tl.log(min_p)
        if top_k > 0:
            threshold = tl.maximum(threshold, _kth_largest(row_ptr, vocab_size, top_k, SPARE_BITS, BLOCK))
        if top_p < 1:
            nucleus = _nucleus(row_ptr, vocab_size, top_p, top, 1 / temperature, threshold, SPARE_BITS, BLOCK)
            threshold = tl.maximum(threshold, nucleus)
    tl.store(thresholds_ptr + row, threshold)


__all__ = ["CHUNK", "INVALID_TOKEN", "SamplingNeeds", "sample"]
