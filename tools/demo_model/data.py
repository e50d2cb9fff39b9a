"""Turns generated documents into packed batches of tokens, with worker processes, in an order that the seed fixes."""

import itertools
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tools.demo_model.conversation import document

DRAWN_AT_ONCE = 64  # documents


@dataclass(frozen=True)
class DataConfig:
    """How documents become batches."""

    tokenizer: Path
    seed: int = 0
    batch_tokens: int = 131_072
    longest: int = 2048
    context_weight: float = 0.1  # weight of the loss on tokens that the model reads rather than writes
    workers: int = 4


@dataclass(frozen=True)
class Batch:
    """One packed row: documents one after the other.

    ``weights`` belong to the token itself: token ``i`` is to be predicted from the tokens before it. ``starts`` are
    cumulative lengths, padded to a fixed size, so that compiled code sees one shape.
    """

    tokens: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    starts: np.ndarray


class Encoder:
    """Tokenizes documents and marks the tokens that the model itself has to write."""

    def __init__(self, path: Path, longest: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.longest = longest
        self.opening = self.tokenizer.encode("<|im_start|>assistant\n").ids
        self.user = self.tokenizer.encode("<|im_start|>user\n").ids[1]
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        assert len(self.opening) == 3

    def written(self, tokens: np.ndarray) -> np.ndarray:
        """True at the tokens of assistant turns with their end mark, and everywhere in raw text."""
        if tokens[0] != self.opening[0]:
            return np.ones(len(tokens), dtype=bool)
        starts = np.flatnonzero((tokens[:-1] == self.opening[0]) & (tokens[1:] == self.opening[1])) + len(self.opening)
        ends = np.flatnonzero(tokens == self.end)
        stops = ends[np.searchsorted(ends, starts).clip(max=len(ends) - 1)] + 1
        delta = np.zeros(len(tokens) + 1, dtype=np.int32)
        np.add.at(delta, starts.clip(max=len(tokens)), 1)
        np.add.at(delta, np.maximum(stops, starts).clip(max=len(tokens)), -1)
        return np.cumsum(delta[:-1]) > 0

    def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids and the written-mask of each text."""
        out = []
        for encoding in self.tokenizer.encode_batch_fast(texts):
            tokens = np.array(encoding.ids[: self.longest], dtype=np.uint16)
            out.append((tokens, self.written(tokens)))
        return out


def make_batch(encoder: Encoder, cfg: DataConfig, index: int) -> Batch:
    """The batch with this number; depends on nothing but seed and number."""
    rng = random.Random(f"demo-model-{cfg.seed}-{index}")
    most_documents = cfg.batch_tokens // 48
    row: list[tuple[np.ndarray, np.ndarray]] = []
    filled = 0
    while True:
        for tokens, mask in encoder.encode([document(rng) for _ in range(DRAWN_AT_ONCE)]):
            if filled + len(tokens) > cfg.batch_tokens or len(row) == most_documents:
                return _pack(cfg, row, most_documents)
            row.append((tokens, mask))
            filled += len(tokens)


def _pack(cfg: DataConfig, row: list[tuple[np.ndarray, np.ndarray]], most_documents: int) -> Batch:
    """Lays documents one after the other; the rest becomes documents of padding that have no weight."""
    size = cfg.batch_tokens
    tokens, weights = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.float32)
    positions = np.zeros(size, dtype=np.int32)
    starts = np.full(most_documents + 1 + size // cfg.longest, size, dtype=np.int32)
    starts[0] = at = 0
    for index, (ids, mask) in enumerate(row):
        stop = at + len(ids)
        tokens[at:stop] = ids
        weights[at:stop] = np.where(mask, 1.0, cfg.context_weight)
        weights[at] = 0.0  # nothing predicts a document's first token
        positions[at:stop] = np.arange(len(ids))
        starts[index + 1] = at = stop
    for index in itertools.count(len(row) + 1):  # padding
        if at == size:
            return Batch(tokens, weights, positions, starts)
        stop = min(at + cfg.longest, size)
        positions[at:stop] = np.arange(stop - at)
        starts[index] = at = stop


def _work(connection: Connection, cfg: DataConfig, first: int) -> None:
    """A worker process: every ``cfg.workers``-th batch, each sent when the trainer asks for it."""
    encoder = Encoder(cfg.tokenizer, cfg.longest)
    try:
        for index in itertools.count(first, cfg.workers):
            connection.send(make_batch(encoder, cfg, index))
    except BrokenPipeError:
        pass  # the trainer has what it needs


def batches(cfg: DataConfig, first: int = 0) -> Iterator[Batch]:
    """Batches ``first``, ``first + 1`` ..., made by worker processes; the order doesn't depend on their number."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for offset in range(cfg.workers):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, cfg, first + offset), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        for receiver in itertools.cycle(pipes):
            yield receiver.recv()
    finally:
        for receiver, process in zip(pipes, processes, strict=True):
            receiver.close()
            process.terminate()
