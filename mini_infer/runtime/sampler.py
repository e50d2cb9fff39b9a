"""The sampler of a worker: what each slot's request asks of its tokens, and the step from logits to tokens.

A plain request (greedy, temperature, top_k, top_p, min_p, seed) lives wholly in its row of device parameters, and a
step of plain requests is one op that a CUDA graph can hold. Everything else a request may ask (penalties, biases,
banned words, allowed tokens, log-probabilities) costs only the steps and the rows in which such a request takes part.

All of it reads the tokens of a sequence from the device's token table: with two steps in flight the newest ones have
not reached the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from itertools import chain

import numpy as np
import torch

from mini_infer.core.plan import AdmittedSlot
from mini_infer.ops.logit_bias import NO_TOKEN, add_bias, ban_words, keep_allowed
from mini_infer.ops.logprobs import TopLogprobs, token_logprobs
from mini_infer.ops.penalties import apply_penalties
from mini_infer.ops.random import request_key
from mini_infer.ops.sampling import INVALID_TOKEN, SamplingNeeds, sample
from mini_infer.ops.sampling_params import (
    FREQUENCY_PENALTY,
    KEY_HIGH,
    KEY_LOW,
    MIN_P,
    NUM_PARAM_COLUMNS,
    PRESENCE_PENALTY,
    PROMPT_LEN,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
)
from mini_infer.protocol import SamplingParams, TokenLogprobs
from mini_infer.runtime.grammar import TokenMasks

GREEDY_BELOW = 1e-5  # temperatures below this leave no probability beside the largest logit's in float32
INVALID_TOKEN_MESSAGE = "no token could be chosen: the logits hold NaN or infinity, or every token is banned"
SMALLEST_TOP_P = 1e-30  # keeps the largest logit alone; float32 would round smaller values to 0, which keeps none
ALWAYS = 2**31 - 1  # a bias that no position lifts
PROMPT_LOGPROB_ROWS = 256  # prompt positions whose logits are held at once


class _Asks(IntFlag):
    """What a slot's request asks beyond a greedy token."""

    RANDOM = 1
    FILTERS = 2
    PENALTIES = 4
    BIAS = 8
    BAD_WORDS = 16
    ALLOWED = 32
    GRAMMAR = 64
    LOGPROBS = 128
    PROCESSORS = PENALTIES | BIAS | BAD_WORDS | ALLOWED | GRAMMAR


@dataclass(frozen=True)
class StepNeeds:
    """What a step's rows need together."""

    sampling: SamplingNeeds
    processors: bool  # some row's logits are changed before sampling
    logprobs: bool  # some row returns log-probabilities

    @property
    def plain(self) -> bool:
        """True when `ops.sampling.sample` alone does the step."""
        return not (self.processors or self.logprobs)


def _needs_of(asks: int) -> StepNeeds:
    return StepNeeds(
        sampling=SamplingNeeds(random=bool(asks & _Asks.RANDOM), filtered=bool(asks & _Asks.FILTERS)),
        processors=bool(asks & _Asks.PROCESSORS),
        logprobs=bool(asks & _Asks.LOGPROBS),
    )


_NEEDS = tuple(map(_needs_of, range(2 * _Asks.LOGPROBS)))  # by the union of what the rows ask


@dataclass(frozen=True)
class _SlotExtras:
    """The parts of a request that have no place in its row of device parameters."""

    bias: np.ndarray  # int32 [3, E]: token, value (the bits of a float32), the position from which it is lifted
    bad_words: list[list[int]]
    logprobs: int


@dataclass(frozen=True)
class SampleOutput:
    """A step's tokens and log-probabilities, still on the device.

    `token_ids` int32 [R]; a row of `INVALID_TOKEN` (-1) failed, for the reason in `INVALID_TOKEN_MESSAGE`. The runner
    copies `logprob_tensors` to the host whenever it likes, and gives the copies to `unpack`.
    """

    token_ids: torch.Tensor
    logprobs: TopLogprobs | None  # of the rows that asked
    logprob_rows: tuple[int, ...] = ()
    logprob_counts: tuple[int, ...] = ()  # how many of the most likely tokens each of these rows asked for

    @property
    def logprob_tensors(self) -> list[torch.Tensor]:
        """What `unpack` needs on the host; empty when no row asked for log-probabilities."""
        return [] if self.logprobs is None else list(self.logprobs)

    def unpack(self, host_tensors: Sequence[torch.Tensor]) -> dict[int, TokenLogprobs]:
        """Host copies of `logprob_tensors` -> row -> its log-probabilities."""
        if not self.logprob_rows:
            return {}
        return dict(zip(self.logprob_rows, unpack_logprobs(host_tensors, self.logprob_counts)))


def unpack_logprobs(host_tensors: Sequence[torch.Tensor], counts: Sequence[int]) -> list[TokenLogprobs]:
    """The fields of a `TopLogprobs` on the host -> one record a row, with the `counts[row]` most likely tokens."""
    token_ids, logprobs, ranks = (tensor.tolist() for tensor in host_tensors)
    return [TokenLogprobs(ids[: k + 1], values[: k + 1], rank)
            for ids, values, rank, k in zip(token_ids, logprobs, ranks, counts)]


class Sampler:
    """Turns logits into tokens for the requests in the device slots 0 .. num_slots - 1 (slot num_slots is padding)."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device, eos_token_ids: Sequence[int], seed: int):
        self.vocab_size = vocab_size
        self.num_slots = num_slots
        self.device = torch.device(device)
        self.eos_token_ids = tuple(token for token in eos_token_ids if token < vocab_size)
        self.seed = seed
        self._asks = np.zeros(num_slots + 1, dtype=np.int32)
        self._extras: dict[int, _SlotExtras] = {}
        self._allowed: torch.Tensor | None = None  # int32 [num_slots + 1, ceil(V / 32)], made when first needed

    # --------------------------------------------------------------------------------------------- requests come and go

    def param_row(self, admitted: AdmittedSlot) -> np.ndarray:
        """The request's row of device parameters (ops/sampling_params.py), int32 [16]."""
        params = admitted.params
        integers = np.zeros(NUM_PARAM_COLUMNS, dtype=np.int32)
        floats, words = integers.view(np.float32), integers.view(np.uint32)
        floats[TEMPERATURE.value] = params.temperature if params.temperature >= GREEDY_BELOW else 0.0
        integers[TOP_K.value] = params.top_k if 0 < params.top_k < self.vocab_size else 0
        floats[TOP_P.value] = max(params.top_p, SMALLEST_TOP_P)
        floats[MIN_P.value] = params.min_p
        floats[REPETITION_PENALTY.value] = params.repetition_penalty
        floats[PRESENCE_PENALTY.value] = params.presence_penalty
        floats[FREQUENCY_PENALTY.value] = params.frequency_penalty
        key = request_key(params.seed, self.seed, admitted.request_id)
        words[KEY_LOW.value], words[KEY_HIGH.value] = key & 0xFFFFFFFF, key >> 32
        integers[PROMPT_LEN.value] = admitted.prompt_len
        return integers

    def admit(self, admitted: AdmittedSlot) -> None:
        """Take in the request that now holds a slot, for the first time or again after a preemption."""
        params = admitted.params
        extras = _SlotExtras(
            bias=self._bias_entries(params, admitted.prompt_len),
            bad_words=params.bad_words_token_ids or [],
            logprobs=params.logprobs or 0,
        )
        asks = _Asks(0)
        if params.temperature >= GREEDY_BELOW:
            asks |= _Asks.RANDOM
            if 0 < params.top_k < self.vocab_size or params.top_p < 1 or params.min_p > 0:
                asks |= _Asks.FILTERS
        if params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0:
            asks |= _Asks.PENALTIES
        if extras.bias.size:
            asks |= _Asks.BIAS
        if extras.bad_words:
            asks |= _Asks.BAD_WORDS
        if params.allowed_token_ids is not None:
            asks |= _Asks.ALLOWED
        if params.structured_outputs is not None:
            asks |= _Asks.GRAMMAR
        if params.logprobs is not None:
            asks |= _Asks.LOGPROBS
        self.release(admitted.slot)
        self._asks[admitted.slot] = asks
        if asks & (_Asks.PROCESSORS | _Asks.LOGPROBS):
            self._extras[admitted.slot] = extras
        if params.allowed_token_ids is not None:
            self._allow(admitted.slot, params.allowed_token_ids)

    def release(self, slot: int) -> None:
        """Forget the slot's request."""
        if self._asks[slot] & _Asks.ALLOWED and self._allowed is not None:
            self._allowed[slot].fill_(-1)
        self._asks[slot] = 0
        self._extras.pop(slot, None)

    def _bias_entries(self, params: SamplingParams, prompt_len: int) -> np.ndarray:
        """logit_bias, which always holds, and bans of what would stop the request before its min_tokens."""
        stops: set[int] = set()
        if params.min_tokens > 0:
            stops.update(params.stop_token_ids or (), () if params.ignore_eos else self.eos_token_ids)
        bias = params.logit_bias or {}
        values = np.array([*bias.values(), *(-np.inf for _ in stops)], dtype=np.float32)
        until = [ALWAYS] * len(bias) + [prompt_len + params.min_tokens] * len(stops)
        return np.stack([np.array([*bias, *stops], np.int32), values.view(np.int32), np.array(until, np.int32)])

    def _allow(self, slot: int, token_ids: list[int]) -> None:
        bits = np.zeros((self.vocab_size + 31) // 32 * 32, dtype=bool)
        bits[token_ids] = True
        words = np.packbits(bits, bitorder="little").view("<i4")
        if self._allowed is None:
            self._allowed = torch.full((self.num_slots + 1, len(words)), -1, dtype=torch.int32, device=self.device)
        self._allowed[slot] = self._upload(words)[0]

    # -------------------------------------------------------------------------------------------------------- each step

    def needs(self, slots: Sequence[int]) -> StepNeeds:
        """What a step over these slots needs."""
        return _NEEDS[np.bitwise_or.reduce(self._asks[list(slots)], initial=0)]

    def sample(
        self, logits: torch.Tensor, slots_host: Sequence[int], slots: torch.Tensor, positions: torch.Tensor,
        params: torch.Tensor, token_ids: torch.Tensor, masks: TokenMasks | None = None,
    ) -> SampleOutput:
        """Choose one token a row, for rows of any kind.

        `logits` [R, V] float32, bfloat16 or float16 (left as they are); `slots_host` and `slots` int32 [R], the same
        slots on the host and on the device; `positions` int32 [R], where each chosen token will stand; `params` int32
        [num_slots + 1, 16] and `token_ids` int32 [num_slots + 1, L], the device tables. `masks`: what rows that follow
        a grammar may choose.
        """
        needs = self.needs(slots_host)
        if needs.plain:
            return SampleOutput(sample(logits, slots, positions, params, needs.sampling), None)
        asks = self._asks[list(slots_host)]
        processed = np.flatnonzero(asks & _Asks.PROCESSORS)
        tokens = (torch.empty_like(slots) if len(processed) == len(asks)
                  else sample(logits, slots, positions, params, needs.sampling))
        if len(processed):
            (rows,) = self._upload(processed)
            row_slots, row_positions = slots.index_select(0, rows), positions.index_select(0, rows)
            copies = logits.index_select(0, rows).float()
            if masks is not None:
                self._keep_grammar(copies, processed, masks)
            self._process(copies, [slots_host[row] for row in processed.tolist()], row_slots, row_positions, params,
                          token_ids)
            tokens.index_copy_(0, rows.long(), sample(copies, row_slots, row_positions, params, needs.sampling))
        if not needs.logprobs:
            return SampleOutput(tokens, None)
        return self._with_logprobs(logits, tokens, slots_host)

    def prompt_logprobs(
        self, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor], targets: torch.Tensor, k: int
    ) -> TopLogprobs:
        """Log-probabilities of prompt tokens under the model, with the logits of only a few rows in memory at a time.

        `hidden` [N, H], the final hidden states of N prompt positions; `logits_of` maps [n, H] to [n, V]; `targets`
        integer [N], the tokens at the positions that follow. The host reads the result with `unpack_logprobs`.
        """
        slices = [token_logprobs(logits_of(rows), tokens, k)
                  for rows, tokens in zip(hidden.split(PROMPT_LOGPROB_ROWS), targets.split(PROMPT_LOGPROB_ROWS))]
        return TopLogprobs(*(torch.cat(parts) for parts in zip(*slices)))

    def warm_up(
        self, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, params: torch.Tensor,
        token_ids: torch.Tensor,
    ) -> None:
        """Run plain sampling in its three forms, the penalties and a mask, on rows of the padding slot: compiles
        kernels."""
        for needs in (SamplingNeeds(), SamplingNeeds(random=True), SamplingNeeds(random=True, filtered=True)):
            sample(logits, slots, positions, params, needs)
        apply_penalties(logits[:1].float(), slots[:1], positions[:1], params, token_ids)
        everything = np.full((1, (self.vocab_size + 31) // 32), -1, dtype=np.int32)
        keep_allowed(logits[:1].float(), *self._upload(np.zeros(1, dtype=np.int32), everything))

    def _keep_grammar(self, logits: torch.Tensor, processed: np.ndarray, masks: TokenMasks) -> None:
        """Ban what the grammars do not allow, in place, in the logits of the step's rows `processed`."""
        free = len(masks.rows)  # rows without a grammar get the mask that allows everything, which follows the others
        which = np.full(len(processed), free, dtype=np.int32)
        which[np.searchsorted(processed, masks.rows)] = np.arange(free)
        bits = np.concatenate([masks.bits, np.full_like(masks.bits[:1], -1)])
        keep_allowed(logits, *self._upload(which, bits))

    def _with_logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, slots_host: Sequence[int]) -> SampleOutput:
        """Add the log-probabilities of the rows that asked, under the logits as the model gave them."""
        asking = np.flatnonzero(self._asks[list(slots_host)] & _Asks.LOGPROBS)
        rows = tuple(asking.tolist())
        counts = tuple(self._extras[slots_host[row]].logprobs for row in rows)
        chosen = tokens
        if len(rows) < len(slots_host):
            (index,) = self._upload(asking)
            logits, chosen = logits.index_select(0, index), tokens.index_select(0, index)
        return SampleOutput(tokens, token_logprobs(logits, chosen, max(counts)), rows, counts)

    def _process(
        self, logits: torch.Tensor, slots_host: list[int], slots: torch.Tensor, positions: torch.Tensor,
        params: torch.Tensor, token_ids: torch.Tensor,
    ) -> None:
        """Change float32 copies of the logits in place, in vLLM's order: allowed, banned, biased, penalised."""
        asks = int(np.bitwise_or.reduce(self._asks[slots_host]))
        extras = [self._extras[slot] for slot in slots_host]
        if asks & _Asks.ALLOWED and self._allowed is not None:
            keep_allowed(logits, slots, self._allowed)
        if asks & _Asks.BAD_WORDS:
            rows = np.repeat(np.arange(len(extras)), [len(extra.bad_words) for extra in extras])
            words = list(chain.from_iterable(extra.bad_words for extra in extras))
            width = max(map(len, words))
            padded = np.array([[NO_TOKEN] * (width - len(word)) + word for word in words])
            ban_words(logits, slots, positions, token_ids, *self._upload(rows, padded))
        if asks & _Asks.BIAS:
            rows = np.repeat(np.arange(len(extras)), [extra.bias.shape[1] for extra in extras])
            entries = np.concatenate([extra.bias for extra in extras], axis=1)
            row, token, value, until = self._upload(rows, *entries)
            add_bias(logits, positions, row, token, value.view(torch.float32), until)
        if asks & _Asks.PENALTIES:
            apply_penalties(logits, slots, positions, params, token_ids)

    def _upload(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Integer arrays -> int32 tensors of the same shapes on the device, in one copy the host does not await."""
        packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int32, copy=False))
        if self.device.type == "cuda":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        pieces = packed.split([array.size for array in arrays])
        return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


__all__ = ["INVALID_TOKEN", "INVALID_TOKEN_MESSAGE", "SampleOutput", "Sampler", "StepNeeds", "unpack_logprobs"]
