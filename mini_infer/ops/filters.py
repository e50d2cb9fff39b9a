"""Top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751) and min-p (Nguyen et al. 2024, arXiv:2407.01082) as one number.

What they keep is always "every logit of at least t" (tokens tied with the last one kept are kept too), so each row
needs a threshold t and nothing is sorted. Order, as in Hugging Face and vLLM: temperature, min-p, top-k, top-p, each on
what the ones before left.

On a GPU t is found bit by bit, from the highest: the largest key that k logits reach, or that logits with a mass of p
reach. Each bit looks at the logits again, so it had better look at few. The vocabulary is cut into stretches of 32
tokens, and the largest logit of a stretch is its peak:

- Top-k: k peaks are at least the k-th largest peak, so k logits are. Hence the k-th largest logit is at least that
  much, and lies in a stretch whose peak is.
- Top-p without top-k: the stretches whose peaks are at least the 256th largest are tried first. If the logits that are
  at least that much have the mass, all of the nucleus is there. Then those whose peaks are at least the 1,024th; then
  all. With min-p as well it is the stretches that hold whatever min-p leaves, for their mass must be known.

Three kernels: one reads all logits and leaves the peaks; one a row puts the stretches in order; one a row finds t.
"""

from __future__ import annotations

import torch

from mini_infer.ops.dispatch import cdiv, next_power_of_2, tl, triton
from mini_infer.ops.sampling_params import MIN_P, TEMPERATURE, TOP_K, TOP_P, RowParams

STRETCH = 32  # tokens
SPAN = 128  # stretches that a program reads
FIRST, SECOND = 256, 1024  # stretches that top-p alone tries
BLOCK = 256  # stretches looked at at a time
FACTS = 8  # numbers that the kernels tell each other of a row
REFERENCE_CANDIDATES = 256  # the torch reference looks for thresholds among this many largest logits first


# ----------------------------------------------------------------------------------------------------- torch reference


def thresholds_torch(logits: torch.Tensor, weights: torch.Tensor, p: RowParams) -> torch.Tensor:
    """The smallest logit that each row keeps, float32 [R]; -inf for rows that filter nothing.

    logits, weights: float32 [R, V]; `weights` are the probabilities at the row's temperature.
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


def thresholds_triton(logits: torch.Tensor, slots: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """The smallest logit that each row keeps, float32 [R]; -inf for rows that filter nothing.

    logits [R, V] float32, bfloat16 or float16; slots int32 [R]; params int32 [num_slots + 1, 16], top_k 0 where it is
    off. Of a row that cannot be sampled (NaN, +inf, nothing but -inf) any number.
    """
    num_rows, vocab_size = logits.shape
    num_stretches = cdiv(vocab_size, STRETCH)
    num_spans = cdiv(num_stretches, SPAN)
    spare_bits = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}[logits.dtype]

    def scratch(width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(num_rows, width, dtype=dtype, device=logits.device)

    peaks, span_peaks, masses = scratch(num_stretches), scratch(num_spans), scratch(num_spans)
    order, facts = scratch(num_stretches, torch.int32), scratch(FACTS)
    thresholds = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    _stretches_kernel[(num_spans, num_rows)](
        logits, logits.stride(0), slots, params, params.stride(0), peaks, span_peaks, masses, vocab_size, num_stretches,
        num_spans, STRETCH=STRETCH, SPAN=SPAN)
    _order_kernel[(num_rows,)](
        slots, params, params.stride(0), peaks, span_peaks, masses, order, facts, num_stretches, num_spans,
        SPARE_BITS=spare_bits, STRETCHES=next_power_of_2(num_stretches), SPANS=next_power_of_2(num_spans), FIRST=FIRST,
        SECOND=SECOND, FACTS=FACTS, num_warps=16)
    _threshold_kernel[(num_rows,)](
        logits, logits.stride(0), slots, params, params.stride(0), order, facts, thresholds, vocab_size, num_stretches,
        SPARE_BITS=spare_bits, STRETCH=STRETCH, BLOCK=BLOCK, FACTS=FACTS, num_warps=16)
    return thresholds


@triton.jit
def load_float(params_ptr, slot, params_stride, column: tl.constexpr):
    """A word of a slot's parameters that holds a float."""
    return tl.load(params_ptr + slot * params_stride + column).to(tl.float32, bitcast=True)


@triton.jit
def load_logits(row_ptr, token, vocab_size):
    """Logits as float32: -inf beyond the vocabulary, and NaN as +inf, which marks a row as unusable."""
    x = tl.load(row_ptr + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("inf"), x)


@triton.jit
def weigh(x, top, inverse_temperature, threshold):
    """Unnormalised probabilities; zero below the threshold and for -inf (also where `top` is -inf)."""
    return tl.where((x >= threshold) & (x > float("-inf")), tl.exp((x - top) * inverse_temperature), 0.0)


@triton.jit
def _params_of(slots_ptr, params_ptr, params_stride, row):
    """A row's temperature, top_k, top_p, min_p, and whether it filters anything."""
    slot = tl.load(slots_ptr + row).to(tl.int64)
    temperature = load_float(params_ptr, slot, params_stride, TEMPERATURE)
    top_k = tl.load(params_ptr + slot * params_stride + TOP_K)
    top_p = load_float(params_ptr, slot, params_stride, TOP_P)
    min_p = load_float(params_ptr, slot, params_stride, MIN_P)
    return temperature, top_k, top_p, min_p, (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))


@triton.jit
def _sort_key(x):
    """uint32 in the order of the floats: negative floats have all bits flipped, the others the sign bit."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _key_value(key, SPARE_BITS: tl.constexpr):
    """The float of a key whose low bits were not searched; in a float that came from a narrower dtype they are zero.
    The key 0, that of no number, is -inf here."""
    bits = tl.where(key >> 31 != 0, key & 0x7FFFFFFF, (key | ((1 << SPARE_BITS) - 1)) ^ 0xFFFFFFFF)
    return tl.where(key == 0, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["num_stretches", "num_spans"])
def _stretches_kernel(
    logits_ptr, logits_stride, slots_ptr, params_ptr, params_stride, peaks_ptr, span_peaks_ptr, masses_ptr, vocab_size,
    num_stretches, num_spans, STRETCH: tl.constexpr, SPAN: tl.constexpr,
):
    """One program: SPAN stretches of a row; their peaks and, for top-p without top-k, the largest of these and the mass
    of all relative to it."""
    span = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    temperature, top_k, top_p, _min_p, filters = _params_of(slots_ptr, params_ptr, params_stride, row)
    if filters:
        stretch = span * SPAN + tl.arange(0, SPAN)
        tokens = stretch[:, None] * STRETCH + tl.arange(0, STRETCH)[None, :]
        x = load_logits(logits_ptr + row * logits_stride, tokens, vocab_size)
        peaks = tl.max(x, axis=1)
        tl.store(peaks_ptr + row * num_stretches + stretch, peaks, mask=stretch < num_stretches)
        if (top_k == 0) & (top_p < 1):
            top = tl.max(peaks, axis=0)
            mass = weigh(x, top, 1 / temperature, float("-inf"))
            tl.store(span_peaks_ptr + row * num_spans + span, top)
            tl.store(masses_ptr + row * num_spans + span, tl.sum(tl.sum(mass, axis=1), axis=0))


@triton.jit
def _kth_peak(keys, valid, k, SPARE_BITS: tl.constexpr):
    """The k-th largest of the floats with these keys that are valid, of which there must be k."""
    key = tl.full((), 0, tl.uint32)
    for i in range(32 - SPARE_BITS):
        candidate = key | (tl.full((), 0x80000000, tl.uint32) >> i)
        count = tl.sum((valid & (keys >= candidate)).to(tl.int32), axis=0)
        key = tl.where(count >= k, candidate, key)
    return _key_value(key, SPARE_BITS)


@triton.jit(do_not_specialize=["num_stretches", "num_spans"])
def _order_kernel(
    slots_ptr, params_ptr, params_stride, peaks_ptr, span_peaks_ptr, masses_ptr, order_ptr, facts_ptr, num_stretches,
    num_spans, SPARE_BITS: tl.constexpr, STRETCHES: tl.constexpr, SPANS: tl.constexpr, FIRST: tl.constexpr,
    SECOND: tl.constexpr, FACTS: tl.constexpr,
):
    """One program a row: the stretches in the order in which to look at them. First those whose peaks are at least the
    k-th largest (without top-k the FIRST-th), then (without top-k) those at least the SECOND-th, then the others, also
    all that are nothing but -inf; within each of the three groups as they come.

    Facts of a row: [0] the largest logit; where there is top-k or top-p also [2] and [3] the least peak of the first
    and of the second group, [4] and [5] how many stretches the first and the first two have; for top-p without top-k
    [1] the mass of all logits relative to the largest.
    """
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, _min_p, filters = _params_of(slots_ptr, params_ptr, params_stride, row)
    if filters:
        stretch = tl.arange(0, STRETCHES)
        valid = stretch < num_stretches
        peaks = tl.load(peaks_ptr + row * num_stretches + stretch, mask=valid, other=float("-inf"))
        top = tl.max(peaks, axis=0)
        facts = facts_ptr + row * FACTS
        tl.store(facts, top)
        if (top_k > 0) | (top_p < 1):
            keys = _sort_key(peaks)
            first = _kth_peak(keys, valid, tl.minimum(tl.where(top_k > 0, top_k, FIRST), num_stretches), SPARE_BITS)
            second = first
            if top_k == 0:
                second = _kth_peak(keys, valid, tl.minimum(SECOND, num_stretches), SPARE_BITS)
                span = tl.arange(0, SPANS)
                span_peak = tl.load(span_peaks_ptr + row * num_spans + span, mask=span < num_spans, other=float("-inf"))
                mass = tl.load(masses_ptr + row * num_spans + span, mask=span < num_spans, other=0.0)
                mass *= weigh(span_peak, top, 1 / temperature, float("-inf"))
                tl.store(facts + 1, tl.sum(mass, axis=0))
            some = valid & (peaks > float("-inf"))
            is_first = some & (peaks >= first)
            is_second = some & (peaks >= second) & (peaks < first)
            is_other = valid & ~(is_first | is_second)
            num_first = tl.sum(is_first.to(tl.int32), axis=0)
            num_both = num_first + tl.sum(is_second.to(tl.int32), axis=0)
            tl.store(facts + 2, first)
            tl.store(facts + 3, second)
            tl.store(facts + 4, num_first.to(tl.float32))
            tl.store(facts + 5, num_both.to(tl.float32))
            place = tl.where(is_first, tl.cumsum(is_first.to(tl.int32), axis=0) - 1, tl.where(
                is_second, num_first + tl.cumsum(is_second.to(tl.int32), axis=0) - 1,
                num_both + tl.cumsum(is_other.to(tl.int32), axis=0) - 1))
            tl.store(order_ptr + row * num_stretches + place, stretch, mask=valid)


@triton.jit
def _logits_of(row_ptr, order_ptr, start, count, vocab_size, STRETCH: tl.constexpr, BLOCK: tl.constexpr):
    """The logits [BLOCK * STRETCH] of the stretches start .. start + BLOCK - 1 in order, -inf from `count` on."""
    place = start + tl.arange(0, BLOCK)
    stretch = tl.load(order_ptr + place, mask=place < count, other=0)
    tokens = stretch[:, None] * STRETCH + tl.arange(0, STRETCH)[None, :]
    tokens = tl.where((place < count)[:, None], tokens, vocab_size)
    return tl.reshape(load_logits(row_ptr, tokens, vocab_size), [BLOCK * STRETCH])


@triton.jit
def _mass(
    row_ptr, order_ptr, count, vocab_size, top, inverse_temperature, floor, STRETCH: tl.constexpr, BLOCK: tl.constexpr
):
    """The mass, relative to `top`, of the logits in [floor, inf) of the first `count` stretches."""
    mass = tl.zeros([BLOCK * STRETCH], tl.float32)
    for start in range(0, count, BLOCK):
        x = _logits_of(row_ptr, order_ptr, start, count, vocab_size, STRETCH, BLOCK)
        mass += weigh(x, top, inverse_temperature, floor)
    return tl.sum(mass, axis=0)


@triton.jit
def _cut(
    row_ptr, order_ptr, count, vocab_size, target, top, inverse_temperature, floor, COUNTS: tl.constexpr,
    SPARE_BITS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr,
):
    """The largest logit t such that those in [t, inf), of the first `count` stretches, reach `target`; -inf if all
    together do not. COUNTS: by their number, -inf left out; else by the mass of those not below `floor`.

    The key of t is built bit by bit, from the highest, as the largest that enough logits reach.
    """
    key = tl.full((), 0, tl.uint32)
    for i in range(32 - SPARE_BITS):
        candidate = key | (tl.full((), 0x80000000, tl.uint32) >> i)
        reached = tl.zeros([BLOCK * STRETCH], tl.float32)  # exact for numbers: none is beyond 2^24
        for start in range(0, count, BLOCK):
            x = _logits_of(row_ptr, order_ptr, start, count, vocab_size, STRETCH, BLOCK)
            if COUNTS:
                weight = tl.where(x > float("-inf"), 1.0, 0.0)
            else:
                weight = weigh(x, top, inverse_temperature, floor)
            reached += tl.where(_sort_key(x) >= candidate, weight, 0.0)
        total = tl.sum(reached, axis=0)
        key = tl.where((total >= target) & (total > 0), candidate, key)
    return _key_value(key, SPARE_BITS)


@triton.jit(do_not_specialize=["num_stretches"])
def _threshold_kernel(
    logits_ptr, logits_stride, slots_ptr, params_ptr, params_stride, order_ptr, facts_ptr, thresholds_ptr, vocab_size,
    num_stretches, SPARE_BITS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr, FACTS: tl.constexpr,
):
    """One program a row; rows that filter nothing read no logits."""
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p, filters = _params_of(slots_ptr, params_ptr, params_stride, row)
    row_ptr = logits_ptr + row * logits_stride
    order = order_ptr + row * num_stretches
    facts = facts_ptr + row * FACTS
    threshold = tl.full((), float("-inf"), tl.float32)
    if filters:
        top = tl.load(facts)
        if min_p > 0:
            threshold = top + temperature * tl.log(min_p)
        if (top_k > 0) | (top_p < 1):
            inverse_temperature = 1 / temperature
            first = tl.load(facts + 2)
            count = tl.load(facts + 4).to(tl.int32)  # of stretches that hold whatever may be kept
            if top_k > 0:  # for more than there are stretches, the least peak counts, so all are in the first group
                kth = _cut(row_ptr, order, count, vocab_size, top_k, top, inverse_temperature, threshold, True,
                           SPARE_BITS, STRETCH, BLOCK)
                threshold = tl.maximum(threshold, kth)
            if top_p < 1:
                if top_k == 0:
                    second = tl.load(facts + 3)
                    both = tl.load(facts + 5).to(tl.int32)
                    target = top_p * tl.load(facts + 1)
                    if min_p > 0:  # what it leaves must be there, or its mass would not be known
                        count = tl.where(threshold >= first, count, tl.where(threshold >= second, both, num_stretches))
                    elif _mass(row_ptr, order, count, vocab_size, top, inverse_temperature, first, STRETCH, BLOCK) \
                            < target:
                        count = both
                        if _mass(row_ptr, order, count, vocab_size, top, inverse_temperature, second, STRETCH,
                                 BLOCK) < target:
                            count = num_stretches
                inside = _mass(row_ptr, order, count, vocab_size, top, inverse_temperature, threshold, STRETCH, BLOCK)
                if (top_k > 0) | (min_p > 0) | (count == num_stretches):
                    target = top_p * inside
                else:
                    target = top_p * tl.load(facts + 1)
                nucleus = _cut(row_ptr, order, count, vocab_size, target, top, inverse_temperature, threshold, False,
                               SPARE_BITS, STRETCH, BLOCK)
                threshold = tl.maximum(threshold, nucleus)
    tl.store(thresholds_ptr + row, threshold)
