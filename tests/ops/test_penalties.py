"""Penalties against transformers' processor and against plain counting; torch and Triton alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_tables import DEVICE, GAP, Row, int32, params_table

from mini_infer.ops import penalties
from mini_infer.ops.dispatch import HAS_TRITON

IMPLEMENTATIONS = [penalties._apply_penalties_torch, *([penalties._apply_penalties_triton] if HAS_TRITON else [])]
Implementation = Callable[..., None]


def token_table(rows: list[list[int]], width: int) -> torch.Tensor:
    """int32 [len(rows) + 1, width], strided; unused places hold an id that must not be looked at."""
    table = torch.full((len(rows) + 1, width + GAP), 3, dtype=torch.int32)
    for line, tokens in zip(table, rows):
        line[: len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    return table.to(DEVICE)[:, :width]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repetition_is_transformers(implementation: Implementation) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    sequences = torch.randint(0, 1500, (3, 40), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(3, 1500, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    expected = processors.RepetitionPenaltyLogitsProcessor(1.7)(sequences.to(DEVICE), logits.clone())
    table = params_table([Row(repetition=1.7, prompt_len=n) for n in (0, 12, 40)])
    implementation(logits, int32([0, 1, 2]), int32([40] * 3), table, token_table(sequences.tolist(), 64))
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)


@given(data=st.data(), rows=st.integers(1, 3), vocab_size=st.sampled_from([7, 1030]))
@settings(deadline=None, max_examples=25)
def test_against_counting(data: st.DataObject, rows: int, vocab_size: int) -> None:
    token = st.one_of(st.integers(0, 6), st.sampled_from([-1, vocab_size, vocab_size - 1]))  # also ids to pass over
    penalty = st.sampled_from([-1.5, 0.0, 0.7])
    sequences = [data.draw(st.lists(token, max_size=12)) for _ in range(rows)]
    params = [Row(repetition=data.draw(st.sampled_from([0.5, 1.0, 1.3])), presence=data.draw(penalty),
                  frequency=data.draw(penalty), prompt_len=data.draw(st.integers(0, len(sequence))))
              for sequence in sequences]
    slots = list(reversed(range(rows)))
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = logits.tolist()
    for line, slot in zip(expected, slots):
        sequence, row = sequences[slot], params[slot]
        for t in {t for t in sequence if 0 <= t < vocab_size}:
            line[t] = line[t] / row.repetition if line[t] > 0 else line[t] * row.repetition
            count = sequence[row.prompt_len :].count(t)
            line[t] -= count * row.frequency + (count > 0) * row.presence
    for implementation in IMPLEMENTATIONS:
        ours = logits.clone()
        implementation(ours, int32(slots), int32([len(sequences[slot]) for slot in slots]), params_table(params),
                       token_table(sequences, 1100))
        torch.testing.assert_close(ours.cpu(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_neutral_penalties_change_nothing(implementation: Implementation) -> None:
    """A row that shares a step with penalised ones keeps its logits to the bit, bans included."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logits[0, 5] = -torch.inf
    before = logits.clone()
    table = token_table([[1, 2, 5, 5], []], 8)
    implementation(logits, int32([0, 1]), int32([4, 0]), params_table([Row(), Row()]), table)
    assert torch.equal(logits, before)
