"""The sampler of a worker: requests of every kind side by side, each treated as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.core.plan import AdmittedSlot
from mini_infer.ops.random import mix64
from mini_infer.protocol import SamplingParams
from mini_infer.runtime.sampler import INVALID_TOKEN, SampleOutput, Sampler, unpack_logprobs

VOCAB, SLOTS, LENGTH, EOS = 1100, 6, 32, 2


class Worker:
    """A sampler with its two device tables, as the runner keeps them."""

    def __init__(self, seed: int = 0):
        self.sampler = Sampler(VOCAB, SLOTS, torch.device("cpu"), (EOS, VOCAB + 5), seed)
        self.params = torch.zeros(SLOTS + 1, 16, dtype=torch.int32)
        self.token_ids = torch.zeros(SLOTS + 1, LENGTH, dtype=torch.int32)

    def admit(self, slot: int, params: SamplingParams, tokens: list[int], prompt_len: int | None = None,
              request_id: int = 0) -> None:
        prompt_len = len(tokens) if prompt_len is None else prompt_len
        admitted = AdmittedSlot(slot, request_id, tokens, prompt_len, 0, [], params)
        self.sampler.admit(admitted)
        self.params[slot] = torch.from_numpy(self.sampler.param_row(admitted))
        self.token_ids[slot, : len(tokens)] = torch.tensor(tokens)

    def sample(self, logits: torch.Tensor, slots: list[int], positions: list[int]) -> SampleOutput:
        return self.sampler.sample(logits, slots, torch.tensor(slots, dtype=torch.int32),
                                   torch.tensor(positions, dtype=torch.int32), self.params, self.token_ids)


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def greedy(**params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **params)


def test_param_row() -> None:
    sampler = Sampler(VOCAB, SLOTS, torch.device("cpu"), (EOS,), 0)
    params = SamplingParams(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=-1,
                            frequency_penalty=2, seed=-3)
    row = sampler.param_row(AdmittedSlot(1, 9, [1, 2, 3, 4], 3, 0, [], params))
    assert row.dtype == np.int32 and row.shape == (16,)
    np.testing.assert_array_equal(row.view(np.float32)[[0, 2, 3, 4, 5, 6]], np.float32([0.5, 0.9, 0.1, 1.2, -1, 2]))
    assert row[1] == 7 and row[9] == 3 and not row[10:].any()
    assert int(row.view(np.uint32)[7]) | int(row.view(np.uint32)[8]) << 32 == mix64(-3)
    for params, column, value in ((SamplingParams(temperature=1e-9), 0, 0), (SamplingParams(top_k=-1), 1, 0),
                                  (SamplingParams(top_k=VOCAB), 1, 0)):
        assert sampler.param_row(AdmittedSlot(1, 9, [1], 1, 0, [], params))[column] == value


def test_top_p_too_small_for_float32_keeps_the_largest_logit() -> None:
    worker = Worker()
    worker.admit(0, SamplingParams(top_p=1e-60, seed=1), [5])
    logits = random_logits(1)
    assert worker.sample(logits, [0], [1]).token_ids.tolist() == logits.argmax(-1).tolist()


def test_needs() -> None:
    worker = Worker()
    kinds = [greedy(), SamplingParams(), SamplingParams(top_k=3), greedy(logit_bias={1: 1.0}), greedy(logprobs=0),
             greedy(top_k=3, top_p=0.5)]
    for slot, params in enumerate(kinds):
        worker.admit(slot, params, [1])

    def needs(*slots: int) -> tuple[bool, bool, bool, bool, bool]:
        found = worker.sampler.needs(slots)
        return found.sampling.random, found.sampling.filtered, found.processors, found.logprobs, found.plain

    assert needs(0) == needs(5) == needs() == (False, False, False, False, True)
    assert needs(0, 1) == (True, False, False, False, True)
    assert needs(0, 2, 5) == (True, True, False, False, True)
    assert needs(3) == (False, False, True, False, False)
    assert needs(1, 4) == (True, False, False, True, False)
    worker.sampler.release(3)
    assert needs(3).count(True) == 1


def test_min_tokens_holds_back_eos_and_stop_tokens() -> None:
    worker = Worker()
    logits = torch.zeros(1, VOCAB)
    logits[0, [EOS, 7, 9]] = torch.tensor([5.0, 4.0, 3.0])
    for params, before, after in (
        (greedy(min_tokens=3, stop_token_ids=[7]), 9, EOS),
        (greedy(min_tokens=3), 7, EOS),
        (greedy(min_tokens=3, ignore_eos=True, stop_token_ids=[7]), EOS, EOS),
        (greedy(stop_token_ids=[7]), EOS, EOS),
    ):
        worker.admit(0, params, [4, 4])
        assert [worker.sample(logits, [0], [p]).token_ids.item() for p in (2, 3, 4, 5)] == [before] * 3 + [after]
        # After a preemption the slot's tokens hold outputs already; the prompt's length has not changed.
        worker.admit(1, params, [4, 4, 8, 8], prompt_len=2)
        assert [worker.sample(logits, [1], [p]).token_ids.item() for p in (4, 5)] == [before, after]


def test_bad_words_see_tokens_that_only_the_device_knows() -> None:
    worker = Worker()
    worker.admit(0, greedy(bad_words_token_ids=[[10, 11, 12], [20]]), [1, 2])
    logits = torch.zeros(1, VOCAB)
    logits[0, [20, 12, 5]] = torch.tensor([5.0, 4.0, 3.0])
    assert worker.sample(logits, [0], [2]).token_ids.tolist() == [12]
    worker.token_ids[0, 2:4] = torch.tensor([10, 11])
    assert worker.sample(logits, [0], [4]).token_ids.tolist() == [5]
    assert worker.sample(logits, [0], [3]).token_ids.tolist() == [12]


def test_allowed_token_ids_leave_with_their_request() -> None:
    worker = Worker()
    logits = random_logits(2)
    best = logits.argmax(-1).tolist()
    worker.admit(0, greedy(allowed_token_ids=[3, VOCAB - 1, 31]), [1])
    worker.admit(1, greedy(logit_bias={best[1]: 1.0}), [1])
    allowed = max((3, 31, VOCAB - 1), key=lambda token: float(logits[0, token]))
    assert worker.sample(logits, [0, 1], [1, 1]).token_ids.tolist() == [allowed, best[1]]
    worker.sampler.release(0)
    worker.admit(0, greedy(logit_bias={best[0]: 1.0}), [1])
    worker.admit(1, greedy(allowed_token_ids=[3]), [1])
    assert worker.sample(logits, [0, 1], [1, 1]).token_ids.tolist() == [best[0], 3]


def test_a_row_without_a_usable_token_fails_alone() -> None:
    worker = Worker()
    all_banned = greedy(allowed_token_ids=[EOS], min_tokens=2)
    kinds = [greedy(), SamplingParams(seed=1), all_banned, greedy(logprobs=2), greedy()]
    for slot, params in enumerate(kinds):
        worker.admit(slot, params, [1])
    logits = random_logits(5)
    logits[0, 5], logits[1, 5], logits[3, 5] = torch.nan, torch.inf, torch.nan
    output = worker.sample(logits, [0, 1, 2, 3, 4], [1] * 5)
    assert output.token_ids.tolist() == [INVALID_TOKEN] * 4 + [int(logits[4].argmax())]
    assert list(output.unpack(output.logprob_tensors)) == [3]


def test_logprobs_are_the_models_own() -> None:
    worker = Worker()
    kinds = [greedy(), greedy(logprobs=0), SamplingParams(temperature=3.0, logprobs=5, seed=1, repetition_penalty=2.0),
             greedy(logprobs=3, logit_bias={8: 100.0})]
    for slot, params in enumerate(kinds):
        worker.admit(slot, params, [1, 2, 3])
    logits = random_logits(4)
    before = logits.clone()
    output = worker.sample(logits, [0, 1, 2, 3], [3] * 4)
    assert torch.equal(logits, before)
    entries = output.unpack([tensor.clone() for tensor in output.logprob_tensors])
    assert {row: len(entry.token_ids) for row, entry in entries.items()} == {1: 1, 2: 6, 3: 4}
    expected = logits.log_softmax(-1)
    for row, entry in entries.items():
        assert entry.token_ids[0] == int(output.token_ids[row])
        assert entry.token_ids[1:] == logits[row].topk(len(entry.token_ids) - 1).indices.tolist()
        np.testing.assert_allclose(entry.logprobs, expected[row, entry.token_ids], atol=2e-5)
        assert entry.rank == 1 + int((logits[row] > logits[row, entry.token_ids[0]]).sum())
    assert entries[3].token_ids[0] == 8 and entries[3].rank > 1
    plain = worker.sample(logits[:1], [0], [3])
    assert plain.logprob_tensors == [] and plain.unpack([]) == {}


@pytest.mark.parametrize("rows", [1, 300])
def test_prompt_logprobs(rows: int) -> None:
    """Slice by slice, never with all logits at once."""
    worker = Worker()
    hidden, weight = torch.randn(rows, 8), torch.randn(8, VOCAB)
    targets = torch.randint(0, VOCAB, (rows,), dtype=torch.int32)
    sizes = []

    def logits_of(slice_: torch.Tensor) -> torch.Tensor:
        sizes.append(len(slice_))
        return slice_ @ weight

    top = worker.sampler.prompt_logprobs(hidden, logits_of, targets, 2)
    assert max(sizes) <= 256 and sum(sizes) == rows
    expected = (hidden @ weight).log_softmax(-1)
    for i, entry in enumerate(unpack_logprobs(list(top), [2] * rows)):
        assert entry.token_ids[0] == targets[i]
        np.testing.assert_allclose(entry.logprobs, expected[i, entry.token_ids], atol=1e-4)


def test_seeds() -> None:
    """A seed decides alone; without one, the engine's seed and the request's id do."""
    logits = torch.zeros(1, VOCAB)

    def draw(params: SamplingParams, engine_seed: int, request_id: int, slot: int) -> list[int]:
        worker = Worker(engine_seed)
        worker.admit(slot, params, [1], request_id=request_id)
        return [int(worker.sample(logits, [slot], [p]).token_ids) for p in range(1, 9)]

    seeded = SamplingParams(seed=11)
    assert draw(seeded, 0, 1, 0) == draw(seeded, 5, 2, 3) != draw(replace(seeded, seed=12), 0, 1, 0)
    unseeded = SamplingParams()
    assert draw(unseeded, 0, 1, 0) == draw(unseeded, 0, 1, 4)
    assert len({tuple(draw(unseeded, engine, request, 0)) for engine in range(3) for request in range(3)}) == 9


token_id = st.integers(0, VOCAB - 1)
any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 2.0]), top_k=st.sampled_from([0, 1, 30]), top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]), repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 1.0]), frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.none() | st.dictionaries(token_id, st.floats(-100, 100), max_size=3),
    allowed_token_ids=st.none() | st.lists(token_id, min_size=1, max_size=50),
    bad_words_token_ids=st.none() | st.lists(st.lists(token_id, min_size=1, max_size=3), max_size=3),
    seed=st.integers(0, 9), min_tokens=st.integers(0, 4), logprobs=st.none() | st.integers(0, 4),
)


@given(kinds=st.lists(any_params, min_size=2, max_size=SLOTS), seed=st.integers(0, 99), data=st.data())
@settings(deadline=None, max_examples=40)
def test_alone_or_in_a_crowd(kinds: list[SamplingParams], seed: int, data: st.DataObject) -> None:
    """Whatever the others ask for, a request gets the tokens and log-probabilities that it gets alone."""
    worker = Worker()
    lengths = [data.draw(st.integers(1, 9)) for _ in kinds]
    for slot, (params, length) in enumerate(zip(kinds, lengths)):
        worker.admit(slot, params, list(range(slot, slot + length)), prompt_len=1, request_id=slot)
    slots = data.draw(st.permutations(range(len(kinds))))
    logits = random_logits(len(kinds), seed)
    crowd = worker.sample(logits, slots, [lengths[slot] for slot in slots])
    entries = crowd.unpack(crowd.logprob_tensors)
    for row, slot in enumerate(slots):
        alone = worker.sample(logits[row : row + 1], [slot], [lengths[slot]])
        token = int(alone.token_ids)
        assert token == int(crowd.token_ids[row])
        entry = alone.unpack(alone.logprob_tensors).get(0)
        assert (entry is None) == (row not in entries) == (kinds[slot].logprobs is None)
        if entry is not None:
            assert (entry.token_ids, entry.rank) == (entries[row].token_ids, entries[row].rank)
            np.testing.assert_allclose(entry.logprobs, entries[row].logprobs, atol=1e-5)
        if kinds[slot].allowed_token_ids is not None and token != INVALID_TOKEN:
            assert token in kinds[slot].allowed_token_ids
