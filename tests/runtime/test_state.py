"""The slot table follows the plans, whatever their mixture; input preparation finds every token where it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan
from mini_infer.ops.inputs import prepare_inputs, write_tokens
from mini_infer.protocol import SamplingParams
from mini_infer.runtime.state import NUM_PARAMS, RING, SlotState

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 8, 500, 64


def admitted(slot: int, tokens: list[int], blocks: list[int]) -> AdmittedSlot:
    return AdmittedSlot(slot, slot, tokens, len(tokens), 0, blocks, SamplingParams())


def step(slot: int, start: int, n: int, new_blocks: list[int] | None = None, sample: bool = True) -> SeqStep:
    return SeqStep(slot, 0, slot, start, n, 0, new_blocks or [], sample, False)


def params(count: int) -> list[np.ndarray]:
    return [np.arange(NUM_PARAMS, dtype=np.int32) + 100 * i for i in range(count)]


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_inputs_equal_the_plan(device: str, data: st.DataObject) -> None:
    """Several steps of random chunks: ids, positions and cache slots equal what plain Python says they are."""
    num_slots = data.draw(st.integers(1, 6))
    state = SlotState(num_slots, MAX_LEN, BLOCK_SIZE, NUM_BLOCKS, torch.device(device))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tokens = {s: rng.integers(0, 1000, rng.integers(1, 40)).tolist() for s in range(num_slots)}
    free = iter(rng.permutation(NUM_BLOCKS).tolist())
    tables = {s: [next(free) for _ in range(-(-len(tokens[s]) // BLOCK_SIZE))] for s in tokens}
    computed = dict.fromkeys(tokens, 0)
    first = StepPlan(0, [admitted(s, tokens[s], list(tables[s])) for s in tokens])
    for round_ in range(4):
        plan = first if round_ == 0 else StepPlan(round_)
        for s in rng.permutation(num_slots).tolist():
            n = int(rng.integers(1, len(tokens[s]) - computed[s] + 1))
            new_blocks: list[int] = []
            while len(tables[s]) * BLOCK_SIZE < computed[s] + n:
                new_blocks.append(next(free))
                tables[s] += new_blocks[-1:]
            plan.seqs.append(step(s, computed[s], n, new_blocks, computed[s] + n == len(tokens[s])))
        num_padding = int(rng.integers(0, num_slots - len(plan.seqs) + 2))
        padded = len(plan.seqs) + num_padding
        num_tokens = plan.num_tokens + (int(rng.integers(0, 20)) if num_padding else 0)
        header = state.upload(plan, params(len(plan.admitted)), padded, num_tokens)
        counts, count = header.cu_seqlens_q.diff(), len(plan.seqs)
        assert counts.sum() == num_tokens and counts[count:].tolist() == header.seq_lens[count:].tolist()
        ids, positions, mapping = prepare_inputs(header.slots, header.seq_lens, header.cu_seqlens_q, state.token_ids,
                                                 state.block_table, BLOCK_SIZE, num_tokens,
                                                 max(1, *counts.tolist()))
        want = [(tokens[q.slot][p], p, tables[q.slot][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE)
                for q in plan.seqs for p in range(q.start, q.start + q.n)]
        got = list(zip(ids.tolist(), positions.tolist(), mapping.tolist()))
        assert got[: len(want)] == want
        sampled = torch.arange(7, 7 + padded, dtype=torch.int32, device=device)
        write_tokens(state.token_ids, header.write_slots, header.seq_lens, sampled, state.outbox, header.turn)
        if device != "cpu":
            torch.cuda.synchronize()
        assert state.outgoing(padded).tolist() == sampled.tolist()
        for i, seq in enumerate(plan.seqs):
            computed[seq.slot] += seq.n
            if seq.sample:
                tokens[seq.slot].append(7 + i)
    for s, known in tokens.items():
        assert state.token_ids[s, : len(known)].tolist() == known
        assert state.params[s].tolist() == params(num_slots)[list(tokens).index(s)].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_an_upload_beyond_the_standing_buffer(device: str) -> None:
    """Many long admissions in one step (prefix hits cost no token budget) go through a buffer of their own."""
    length = 4000
    state = SlotState(64, length + 8, 256, NUM_BLOCKS, torch.device(device))
    plan = StepPlan(0, [admitted(s, [s] * length, [s] * 16) for s in range(64)],
                    [step(s, length - 1, 1) for s in range(64)])
    state.upload(plan, params(64), 64, plan.num_tokens)
    assert all(state.token_ids[s, :length].eq(s).all() for s in range(64))
    assert state.block_table[64].eq(NUM_BLOCKS).all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_failed_row_leaves_a_token_that_can_be_embedded(device: str) -> None:
    table = torch.full((3, 8), 5, dtype=torch.int32, device=device)
    index = torch.tensor([0, 1], dtype=torch.int32, device=device)
    outbox = torch.zeros(2, 2, dtype=torch.int32, pin_memory=device == "cuda")
    tokens = torch.tensor([-1, 9], dtype=torch.int32, device=device)
    write_tokens(table, index, index + 2, tokens, outbox, index[1:])
    assert table[0, 2] == 0
    assert outbox.tolist() == [[0, 0], [-1, 9]]
    assert table[1, 3] == 9


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_s_tokens_stay_until_the_ring_comes_round(device: str) -> None:
    """More steps than there are under way may be enqueued before the first one is read."""
    state = SlotState(2, MAX_LEN, BLOCK_SIZE, NUM_BLOCKS, torch.device(device))
    left = []
    for number in range(2 * RING):
        header = state.upload(StepPlan(number, [], [step(0, number, 1)]), [], 1, 1)
        tokens = torch.tensor([number], dtype=torch.int32, device=device)
        write_tokens(state.token_ids, header.write_slots, header.seq_lens, tokens, state.outbox, header.turn)
        left.append(state.outgoing(1))
        if device != "cpu":
            torch.cuda.synchronize()
        assert [int(row) for row in left[-RING:]] == list(range(max(0, number - RING + 1), number + 1))
