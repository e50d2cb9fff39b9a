"""Matchers of the slots, with a grammar small enough to see through: the digits of a number, in order."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
import torch

from mini_infer.core.plan import AdmittedSlot, SeqStep
from mini_infer.protocol import SamplingParams, StructuredOutputs
from mini_infer.runtime import grammar
from mini_infer.runtime.grammar import SlotGrammars
from mini_infer.runtime.sampler import INVALID_TOKEN, Sampler

VOCAB = 70
ASKED = StructuredOutputs(regex="any")


class Counter:
    """Allows the token that follows the last one (0 first), up to `end`; a token out of order is a fault."""

    def __init__(self, end: int):
        self.position, self.end, self.fault = 0, end, ""

    def consume_tokens(self, sampled_tokens: list[int]) -> bool:
        for token in sampled_tokens:
            if token != self.position:
                self.fault = f"{token} is not {self.position}"
            self.position += 1
        return not self.fault

    def unsafe_compute_mask_ptr(self, trg_pointer: int, trg_byte_size: int) -> None:
        words = (ctypes.c_uint32 * (trg_byte_size // 4)).from_address(trg_pointer)
        words[self.position // 32] = 1 << (self.position % 32)

    def is_stopped(self) -> bool:
        return self.position == self.end or bool(self.fault)

    def is_error(self) -> bool:
        return bool(self.fault)

    def get_error(self) -> str:
        return self.fault


class Step:
    def __init__(self, tokens: list[int]):
        self.tokens, self.waited = tokens, 0

    def wait_tokens(self) -> list[int]:
        self.waited += 1
        return self.tokens


def admitted(slot: int, outputs: tuple[int, ...] = (), asked: StructuredOutputs | None = ASKED) -> AdmittedSlot:
    return AdmittedSlot(slot, slot, [60, 61, *outputs], 2, 0, [], SamplingParams(structured_outputs=asked))


def row(slot: int, sample: bool = True) -> SeqStep:
    return SeqStep(slot, 0, slot, 0, 1, 0, [], sample, False)


def allowed(bits: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(np.unpackbits(line.view(np.uint8), bitorder="little")).tolist() for line in bits]


def grammars(end: int = 50) -> SlotGrammars:
    return SlotGrammars(lambda asked: Counter(end), VOCAB)


def test_masks_follow_the_tokens_of_the_step_before() -> None:
    slots = grammars()
    slots.admit(admitted(0))
    slots.admit(admitted(1, (0, 1, 2)))  # back after a preemption
    slots.admit(admitted(2, asked=None))
    seqs = [row(2), row(0), row(1)]
    for i in range(40):
        masks = slots.masks(seqs)
        assert masks is not None and masks.rows.tolist() == [1, 2] and not masks.failed
        assert allowed(masks.bits) == [[i], [i + 3]]
        step = Step([7, i, i + 3])
        slots.sampled(masks, seqs, step)
        if i % 3 == 0:  # a step in which only others take part, and one of a prompt's chunk
            assert slots.masks([row(2)]) is None
            assert slots.masks([row(0, sample=False)]) is None
            assert step.waited == 1
    assert slots.masks([row(0)]) is not None and step.waited == 1


def test_rows_without_a_grammar_wait_for_nothing() -> None:
    slots = grammars()
    slots.admit(admitted(2, asked=None))
    assert slots.masks([row(2)]) is None
    slots.admit(admitted(0))
    masks = slots.masks([row(0)])
    assert masks is not None
    step = Step([0])
    slots.sampled(masks, [row(0)], step)
    slots.release(0)
    assert slots.masks([row(2)]) is None and step.waited == 0


def test_a_slot_that_has_a_new_owner_forgets_the_old_ones_token() -> None:
    slots = grammars()
    slots.admit(admitted(0))
    masks = slots.masks([row(0)])
    assert masks is not None
    slots.sampled(masks, [row(0)], Step([0]))
    slots.release(0)
    slots.admit(admitted(0))
    masks = slots.masks([row(0)])
    assert masks is not None and allowed(masks.bits) == [[0]]


def test_a_token_that_could_not_be_drawn_is_not_read() -> None:
    slots = grammars()
    slots.admit(admitted(0))
    masks = slots.masks([row(0)])
    assert masks is not None
    slots.sampled(masks, [row(0)], Step([INVALID_TOKEN]))
    masks = slots.masks([row(0)])
    assert masks is not None and not masks.failed


def test_a_complete_grammar_reads_nothing_more() -> None:
    slots = grammars(end=2)
    slots.admit(admitted(0, (0, 1, 65, 65)))
    masks = slots.masks([row(0)])
    assert masks is not None and not masks.failed


def test_a_grammar_that_fails_takes_only_its_own_row() -> None:
    def make(asked: StructuredOutputs) -> Counter:
        if asked.regex == "bad":
            raise ValueError("no such grammar")
        return Counter(50)

    slots = SlotGrammars(make, VOCAB)
    slots.admit(admitted(0, (5,)))
    slots.admit(admitted(1, asked=StructuredOutputs(regex="bad")))
    slots.admit(admitted(2))
    seqs = [row(0), row(1), row(2)]
    masks = slots.masks(seqs)
    assert masks is not None and allowed(masks.bits) == [[], [], [0]]
    assert "5 is not 0" in masks.failed[0].reason and "no such grammar" in masks.failed[1].reason
    assert {fault.param for fault in masks.failed.values()} == {"structured_outputs"} and len(masks.failed) == 2
    slots.sampled(masks, seqs, Step([-1, -1, 0]))
    masks = slots.masks([row(2)])
    assert masks is not None and allowed(masks.bits) == [[1]]


def test_the_sampler_draws_under_the_masks() -> None:
    sampler = Sampler(VOCAB, 4, torch.device("cpu"), (), 0)
    slots = grammars()
    plain = SamplingParams(temperature=0.0)
    kinds = [admitted(0), AdmittedSlot(1, 1, [60], 1, 0, [], plain), admitted(2, (0, 1)),
             AdmittedSlot(3, 3, [60], 1, 0, [], SamplingParams(temperature=0.0, logit_bias={9: 100.0}))]
    params = torch.zeros(5, 16, dtype=torch.int32)
    for one in kinds:
        sampler.admit(one)
        slots.admit(one)
        params[one.slot] = torch.from_numpy(sampler.param_row(one))
    logits = torch.arange(VOCAB, dtype=torch.float32).expand(4, VOCAB).clone()
    order = [3, 0, 1, 2]
    masks = slots.masks([row(slot) for slot in order])
    on_device = torch.tensor(order, dtype=torch.int32)
    out = sampler.sample(logits, order, on_device, torch.full((4,), 2, dtype=torch.int32), params,
                         torch.zeros(5, 8, dtype=torch.int32), masks)
    assert out.token_ids.tolist() == [9, 0, VOCAB - 1, 2]


def test_min_tokens_against_a_grammar_that_must_end() -> None:
    """Token 3 ends the request, and may not come before there are two tokens."""
    for stop, eos, outputs, fails in (([3], (), (0, 1, 2), False), ([], (3,), (0, 1, 2), False), ([1], (), (0,), True),
                                      ([], (1,), (0,), True), ([2], (1,), (0,), True), ([2], (), (0,), False)):
        slots = SlotGrammars(lambda asked: Counter(50), VOCAB, eos)
        params = SamplingParams(structured_outputs=ASKED, min_tokens=2, stop_token_ids=stop)
        slots.admit(AdmittedSlot(0, 0, [60, 61, *outputs], 2, 0, [], params))
        masks = slots.masks([SeqStep(0, 0, 0, 0, 2 + len(outputs), 0, [], True, False)])
        assert masks is not None and [fault.param for fault in masks.failed.values()] == ["min_tokens"] * fails


def test_many_rows_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    slots = grammars()
    for slot in range(40):
        slots.admit(admitted(slot, tuple(range(slot)) if slot != 7 else (3,)))
    seqs = [row(slot) for slot in reversed(range(40))]
    masks = slots.masks(seqs)
    assert masks is not None and list(masks.failed) == [32]
    assert allowed(masks.bits) == [[slot] if slot != 7 else [] for slot in reversed(range(40))]


def test_a_grammar_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = grammars()
    slots.admit(admitted(0))
    slots.admit(admitted(1))
    clock = iter(range(0, 100, 1))
    monkeypatch.setattr(grammar.time, "thread_time", lambda: next(clock) * 0.4)  # 0.4 s for each mask
    found = []
    for _ in range(4):
        masks = slots.masks([row(0), row(1, sample=False)])
        assert masks is not None
        found.append(masks.failed.get(0))
    assert found[:2] == [None, None] and "400 ms a token" in found[3].reason
