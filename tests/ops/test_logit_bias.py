"""Biases, banned words and allowed tokens against plain loops and transformers; torch and Triton alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_tables import DEVICE, GAP, int32

from mini_infer.ops import logit_bias
from mini_infer.ops.dispatch import HAS_TRITON
from mini_infer.ops.logit_bias import NO_TOKEN

ADD_BIAS = [logit_bias._add_bias_torch, *([logit_bias._add_bias_triton] if HAS_TRITON else [])]
BAN_WORDS = [logit_bias._ban_words_torch, *([logit_bias._ban_words_triton] if HAS_TRITON else [])]
KEEP_ALLOWED = [logit_bias._keep_allowed_torch, *([logit_bias._keep_allowed_triton] if HAS_TRITON else [])]


def random_logits(rows: int, vocab_size: int) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.mark.parametrize("add_bias", ADD_BIAS)
def test_bias(add_bias: Callable[..., None]) -> None:
    logits = random_logits(3, 50)
    expected = logits.clone()
    entries = [(0, 4, 2.5, 2**31 - 1), (2, 49, -torch.inf, 8), (1, 0, -torch.inf, 7), (2, 4, -1.0, 2**31 - 1),
               (0, 9, -torch.inf, 6), (0, 9, 3.0, 2**31 - 1)]  # the last two meet in one place
    rows, tokens, values, until = zip(*entries)
    add_bias(logits, int32([5, 7, 7]), int32(rows), int32(tokens), torch.tensor(values, device=DEVICE), int32(until))
    expected[0, 4] += 2.5
    expected[2, 49] = -torch.inf
    expected[2, 4] -= 1.0
    expected[0, 9] = -torch.inf
    assert torch.equal(logits, expected)  # row 1 has reached the position that lifts its ban


def table_of(sequences: list[list[int]]) -> torch.Tensor:
    table = torch.zeros(len(sequences) + 1, 20 + GAP, dtype=torch.int32)
    for line, sequence in zip(table, sequences):
        line[: len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
    return table.to(DEVICE)[:, :20]


def padded(words: list[list[int]]) -> torch.Tensor:
    width = max(map(len, words))
    return torch.tensor([[NO_TOKEN] * (width - len(word)) + word for word in words], dtype=torch.int32, device=DEVICE)


word_strategy = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@given(sequences=st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=1, max_size=3), data=st.data())
@settings(deadline=None, max_examples=40)
def test_banned_words(sequences: list[list[int]], data: st.DataObject) -> None:
    words = data.draw(st.lists(st.tuples(st.integers(0, len(sequences) - 1), word_strategy), min_size=1, max_size=5))
    slots = list(reversed(range(len(sequences))))
    logits = random_logits(len(sequences), 5)
    expected = logits.clone()
    for row, word in words:
        sequence = sequences[slots[row]]
        if sequence[len(sequence) - len(word) + 1 :] == word[:-1] and len(sequence) >= len(word) - 1:
            expected[row, word[-1]] = -torch.inf
    for ban_words in BAN_WORDS:
        ours = logits.clone()
        ban_words(ours, int32(slots), int32([len(sequences[slot]) for slot in slots]), table_of(sequences),
                  int32([row for row, _ in words]), padded([word for _, word in words]))
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("ban_words", BAN_WORDS)
def test_banned_words_are_transformers(ban_words: Callable[..., None]) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    sequences = [[5, 1, 2, 3], [3, 1, 2, 4], [1, 4, 5, 1]]
    words = [[9], [2, 3, 7], [3, 6], [4, 8], [5, 1, 2]]
    logits = random_logits(3, 11)
    processor = processors.NoBadWordsLogitsProcessor(words, eos_token_id=10)
    expected = processor(torch.tensor(sequences, device=DEVICE), logits.clone())
    rows = int32([row for row in range(3) for _ in words])
    ban_words(logits, int32([0, 1, 2]), int32([4] * 3), table_of(sequences), rows, padded(words * 3))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("keep_allowed", KEEP_ALLOWED)
@pytest.mark.parametrize("vocab_size", [31, 64, 1061])
def test_allowed(keep_allowed: Callable[..., None], vocab_size: int) -> None:
    allowed_ids = [[0, vocab_size - 1], list(range(0, vocab_size, 3)), [30]]
    bits = torch.zeros(4, (vocab_size + 31) // 32, dtype=torch.int64)
    for line, ids in zip(bits, allowed_ids):
        for token in ids:
            line[token // 32] |= 1 << (token % 32)
    mask = bits.to(torch.int32).to(DEVICE)  # bit 31 makes a word negative
    mask[3] = -1
    slots = [2, 3, 0, 1]
    logits = random_logits(4, vocab_size)
    expected = torch.full_like(logits, -torch.inf)
    for row, slot in enumerate(slots):
        ids = allowed_ids[slot] if slot < 3 else list(range(vocab_size))
        expected[row, ids] = logits[row, ids]
    keep_allowed(logits, int32(slots), mask)
    assert torch.equal(logits, expected)
