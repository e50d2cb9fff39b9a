"""Synthetic requests, made without any download: random prompts, or prompts that share prefixes.

The datasets and their options are vLLM's `random` and `prefix_repetition`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mini_infer.config import ConfigError

if TYPE_CHECKING:  # the command line reads this file's defaults, and needs no tokenizer
    from mini_infer.text.tokenizer import Tokenizer

DATASETS = ("random", "prefix_repetition")
_TRIES = 10  # rounds of decoding and encoding after which a text's length is what it is


@dataclass(frozen=True)
class Sample:
    """One request: its prompt, and how many tokens it asks for."""

    prompt_token_ids: list[int]
    output_len: int


@dataclass(frozen=True)
class RandomDataset:
    """Prompts of random tokens behind one common prefix; each length is uniform within `range_ratio` of its own."""

    input_len: int = 1024
    output_len: int = 128
    prefix_len: int = 0
    range_ratio: float = 0.0

    def __post_init__(self) -> None:
        _at_least("random_input_len", self.input_len, 1)
        _at_least("random_output_len", self.output_len, 1)
        _at_least("random_prefix_len", self.prefix_len, 0)
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(f"random_range_ratio must be in [0, 1), got {self.range_ratio}")

    def samples(self, count: int, vocabulary: Sequence[int], rng: random.Random) -> list[Sample]:
        prefix = rng.choices(vocabulary, k=self.prefix_len)
        return [Sample(prefix + rng.choices(vocabulary, k=self._near(self.input_len, rng)),
                       self._near(self.output_len, rng)) for _ in range(count)]

    def _near(self, length: int, rng: random.Random) -> int:
        spread = int(length * self.range_ratio)
        return max(1, rng.randint(length - spread, length + spread))


@dataclass(frozen=True)
class PrefixRepetitionDataset:
    """`num_prefixes` prefixes, each in front of as many random endings, in random order."""

    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128

    def __post_init__(self) -> None:
        _at_least("prefix_repetition_prefix_len", self.prefix_len, 0)
        _at_least("prefix_repetition_suffix_len", self.suffix_len, 1)
        _at_least("prefix_repetition_num_prefixes", self.num_prefixes, 1)
        _at_least("prefix_repetition_output_len", self.output_len, 1)

    def samples(self, count: int, vocabulary: Sequence[int], rng: random.Random) -> list[Sample]:
        prefixes = [rng.choices(vocabulary, k=self.prefix_len) for _ in range(self.num_prefixes)]
        samples = [Sample(prefixes[i % self.num_prefixes] + rng.choices(vocabulary, k=self.suffix_len), self.output_len)
                   for i in range(count)]
        rng.shuffle(samples)
        return samples


Dataset = RandomDataset | PrefixRepetitionDataset


def ordinary_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand for text by themselves: no control tokens, no halves of characters."""
    ordinary = [i for i in range(tokenizer.vocab_size) if _is_text(tokenizer.decode([i]))]
    return ordinary or list(range(tokenizer.vocab_size))


def as_text(token_ids: Sequence[int], tokenizer: Tokenizer, vocabulary: Sequence[int], rng: random.Random) -> str:
    """A text that has as many tokens as `token_ids`, or nearly: where two of them make another one side by side, it
    is cut or filled up and read again."""
    wanted = len(token_ids)
    ids = list(token_ids)
    for _ in range(_TRIES):
        text = tokenizer.decode(ids)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == wanted:
            break
        ids = ids[:wanted] + rng.choices(vocabulary, k=max(0, wanted - len(ids)))
    return text


def _is_text(piece: str) -> bool:
    return piece != "" and "\ufffd" not in piece and piece.isprintable()


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")
