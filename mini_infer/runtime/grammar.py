"""Grammars of the slots: which tokens each structured request may choose next.

A mask depends on all tokens before it, so it cannot be made ahead: with two steps in flight the host enqueues a step's
forward pass, then waits for the tokens of the step before (which ends earlier anyway), moves the grammars on, and hands
the masks to the sampler while the device still computes. Other requests' rows have no part in any of this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mini_infer.core.plan import AdmittedSlot, SeqStep
from mini_infer.protocol import StructuredOutputs

PARALLEL_ROWS = 16  # from here on threads share the masks of a step; llguidance leaves the interpreter lock
MAX_THREADS = 8
GRACE_SECONDS, SECONDS_A_TOKEN = 1.0, 0.005  # of a processor, for one request; an ordinary mask takes 50 microseconds


class Matcher(Protocol):
    """A place in a grammar (llguidance's LLMatcher). Faults show in `is_error`, and a matcher stays faulty."""

    def consume_tokens(self, sampled_tokens: list[int]) -> bool: ...

    def unsafe_compute_mask_ptr(self, trg_pointer: int, trg_byte_size: int) -> None:
        """Write the bits of the tokens that may follow."""

    def is_stopped(self) -> bool: ...

    def is_error(self) -> bool: ...

    def get_error(self) -> str: ...


MatcherFactory = Callable[[StructuredOutputs], Matcher]  # raises RequestError


class Fault(NamedTuple):
    """Why a request can choose no token, and its field that says so."""

    reason: str
    param: str


@dataclass(frozen=True)
class TokenMasks:
    """Of a step's rows that follow a grammar: bits[i], int32 words [ceil(V / 32)], says what rows[i] may choose.

    A row in `failed` may choose nothing.
    """

    rows: np.ndarray
    bits: np.ndarray
    failed: dict[int, Fault]


class SampledTokens(Protocol):
    """A step under way, whose tokens can be waited for."""

    def wait_tokens(self) -> list[int]: ...


@dataclass(slots=True, eq=False)
class _Slot:
    """The matcher of a slot's request, once it is made, and what its masks have cost."""

    matcher: Future[Matcher]
    param: str  # the request's field that asked for the grammar
    banned: tuple[int, ...]  # tokens that end the request, banned before position `banned_until`
    banned_until: int
    num_masks: int = 0
    seconds: float = 0.0

    def fill(self, words: np.ndarray, position: int) -> Fault | None:
        """Write the mask of the token at `position`; returns why none can follow."""
        try:
            matcher = self.matcher.result()
            start = time.thread_time()
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self.seconds += time.thread_time() - start
            self.num_masks += 1
            if matcher.is_error():
                reason = matcher.get_error().partition("\n")[0]
                return self._failed("nothing can follow" if reason == "NoExtensionBias" else reason)
        except Exception as fault:  # the grammar's, or a bug in the library: this request's alone
            return self._failed(str(fault))
        if self.seconds > GRACE_SECONDS + SECONDS_A_TOKEN * self.num_masks:
            each = self.seconds / self.num_masks
            return self._failed(f"it takes {each * 1000:.0f} ms a token, which others have to wait for")
        if position < self.banned_until and not _without(words, self.banned).any():
            return Fault("the output is complete by its grammar before it has min_tokens tokens", "min_tokens")
        return None

    def _failed(self, reason: str) -> Fault:
        return Fault(f"the grammar of this request failed: {reason}", self.param)


class SlotGrammars:
    """The matchers of the slots whose requests follow a grammar.

    A matcher is made beside the step's other work, in a thread, when its request is admitted; after a preemption it
    reads the outputs of before. A request whose grammar fails, fails alone, with the reason.
    """

    def __init__(self, make_matcher: MatcherFactory, vocab_size: int, eos_token_ids: Sequence[int] = ()):
        self._make_matcher = make_matcher
        self._eos_token_ids = eos_token_ids
        self._num_words = (vocab_size + 31) // 32
        self._slots: dict[int, _Slot] = {}
        self._num_threads = min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._pool: ThreadPoolExecutor | None = None
        self._unread: tuple[SampledTokens, list[tuple[int, _Slot]]] | None = None  # the rows, and whose they are

    def admit(self, admitted: AdmittedSlot) -> None:
        """Take in the request that now holds a slot, for the first time or again after a preemption."""
        self.release(admitted.slot)
        params, asked = admitted.params, admitted.params.structured_outputs
        if asked is not None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads + 1, "grammar")  # one to build while others fill
            outputs = admitted.tokens[admitted.prompt_len :]
            banned = (*(params.stop_token_ids or ()), *(() if params.ignore_eos else self._eos_token_ids))
            self._slots[admitted.slot] = _Slot(self._pool.submit(self._start, asked, outputs), asked.source, banned,
                                               admitted.prompt_len + params.min_tokens)

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def _start(self, asked: StructuredOutputs, outputs: list[int]) -> Matcher:
        matcher = self._make_matcher(asked)
        _advance(matcher, outputs)
        return matcher

    def masks(self, seqs: Sequence[SeqStep]) -> TokenMasks | None:
        """What the rows that sample in this step may choose; None when none of them follows a grammar.

        Waits for the tokens of the last step that had such rows.
        """
        if not self._slots:
            self._unread = None
            return None
        self._read()
        rows = [row for row, seq in enumerate(seqs) if seq.sample and seq.slot in self._slots]
        if not rows:
            return None
        bits = np.zeros((len(rows), self._num_words), dtype=np.int32)
        work = [(self._slots[seqs[row].slot], row, seqs[row].start + seqs[row].n, line)
                for row, line in zip(rows, bits)]
        if len(work) < PARALLEL_ROWS or self._num_threads == 1 or self._pool is None:
            failed = _fill(work)
        else:
            shares = [work[i:: self._num_threads] for i in range(self._num_threads)]
            failed = {row: reason for part in self._pool.map(_fill, shares) for row, reason in part.items()}
        return TokenMasks(np.array(rows), bits, failed)

    def sampled(self, masks: TokenMasks, seqs: Sequence[SeqStep], step: SampledTokens) -> None:
        """Remember the step that drew under these masks: its tokens are read before the next masks are made."""
        self._unread = (step, [(row, self._slots[seqs[row].slot]) for row in masks.rows.tolist()
                               if row not in masks.failed])

    def _read(self) -> None:
        if self._unread is None:
            return
        step, rows = self._unread
        self._unread = None
        live = set(self._slots.values())  # the others' requests have ended, or begun again
        token_ids = step.wait_tokens()
        for row, slot in rows:
            if slot in live and token_ids[row] >= 0:
                _advance(slot.matcher.result(), [token_ids[row]])


def _fill(work: list[tuple[_Slot, int, int, np.ndarray]]) -> dict[int, Fault]:
    """Write the mask of each (slot, row, position, words); returns the rows that can choose nothing."""
    failed: dict[int, Fault] = {}
    for slot, row, position, words in work:
        fault = slot.fill(words, position)
        if fault is not None:
            words.fill(0)
            failed[row] = fault
    return failed


def _without(words: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
    """A mask less some tokens."""
    left = words.view(np.uint32).copy()
    for token_id in token_ids:
        left[token_id // 32] &= np.uint32(0xFFFFFFFF ^ 1 << token_id % 32)
    return left


def _advance(matcher: Matcher, token_ids: list[int]) -> None:
    """Move on by tokens. A grammar that is complete stays so: what ignore_eos draws after its end is no part of it."""
    for token_id in token_ids:
        if matcher.is_stopped():
            return
        matcher.consume_tokens([token_id])
