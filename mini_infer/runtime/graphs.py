"""CUDA graphs of whole steps, one for each of a ladder of shapes: steps in which every sequence has one token, and
small ones that have prompt chunks beside them, whose launching would take the host longer than the GPU needs."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mini_infer.ops.attention_split import distinct_bounds

Outputs = tuple[torch.Tensor, ...]
MAX_BATCH = 512
MAX_MIXED = 1024  # tokens; larger steps are launched kernel by kernel, which only a small model's GPU waits for


class StepShape(NamedTuple):
    """Bounds of a step that a graph can run; what is smaller is padded. In this order the smallest comes first."""

    num_tokens: int
    num_seqs: int
    max_seq_len: int
    max_query_len: int  # 1, then there are as many sequences as tokens, or num_tokens

    def holds(self, num_tokens: int, num_seqs: int, max_seq_len: int) -> bool:
        padding = num_tokens < self.num_tokens  # belongs to a sequence of its own
        return (num_tokens <= self.num_tokens and num_seqs + padding <= self.num_seqs
                and max_seq_len <= self.max_seq_len)


def decode_shapes(max_num_seqs: int, max_model_len: int, num_kv_heads: int) -> list[StepShape]:
    """A token for each sequence. Batch sizes are dense where padding would cost a large share, sparse above.

    The grid of decode attention is fixed in a graph, sized for the longest context; a short one would mostly start
    blocks that find nothing to do, and merge splits that are not there. So there are several lengths as well.
    """
    largest = min(max_num_seqs, MAX_BATCH)
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, MAX_BATCH, 32)]
    sizes = [size for size in sizes if size < largest] + [largest]
    lengths = [length for length in (1024, 4096) if length < max_model_len] + [max_model_len]
    return [StepShape(size, size, length, 1) for size in sizes
            for length in distinct_bounds(size, num_kv_heads, lengths)]


def mixed_shapes(max_num_seqs: int, most_tokens: int, longest: int) -> list[StepShape]:
    """Prompt chunks and decode tokens, up to `most_tokens` in all, of contexts up to `longest`.

    Each size comes for several numbers of sequences, since each costs a row of the last layer and of logits. The
    largest is one more than there can be: padding is a sequence of its own. There is none beyond MAX_MIXED.
    """
    most = min(most_tokens, MAX_MIXED, longest)
    sizes = [size for size in (*range(64, 512, 64), *range(512, MAX_MIXED, 128)) if size < most]
    sizes += [most] if most > 1 else []
    return [StepShape(size, num_seqs, longest, size) for size in sizes
            for num_seqs in sorted({min(few, size, max_num_seqs + 1) for few in (64, 128, 256, MAX_BATCH + 1)})]


class StepGraphs:
    """Graphs of `run(shape)`, captured largest first into one memory pool, which the smaller reuse.

    `run` must read its inputs from fixed places on the device, where `prepare(shape)` puts valid ones for the capture,
    and be free of host synchronisation; every kernel that it launches must have been loaded already
    (engine/rehearsal.py). What it returns is overwritten by the next replay of any graph here.
    """

    def __init__(self, prepare: Callable[[StepShape], object], run: Callable[[StepShape], Outputs],
                 shapes: Sequence[StepShape]):
        self._ladder = ShapeLadder(shapes)
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        pool = torch.cuda.graph_pool_handle()
        with _cheap_collections():
            for shape in sorted(shapes, reverse=True):
                prepare(shape)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    outputs = run(shape)
                self._graphs[shape] = (graph, outputs)

    def find(self, num_tokens: int, num_seqs: int, max_seq_len: int) -> StepShape | None:
        """The smallest captured shape that holds such a step, if one does."""
        return self._ladder.find(num_tokens, num_seqs, max_seq_len)

    def replay(self, shape: StepShape) -> Outputs:
        """Run the captured step; returns its output tensors, valid until the next replay."""
        graph, outputs = self._graphs[shape]
        graph.replay()
        return outputs


class ShapeLadder:
    """Finds the smallest of some shapes."""

    def __init__(self, shapes: Sequence[StepShape]):
        self._shapes = {one: sorted(shape for shape in shapes if (shape.max_query_len == 1) == one)
                        for one in (True, False)}

    def find(self, num_tokens: int, num_seqs: int, max_seq_len: int) -> StepShape | None:
        shapes = self._shapes[num_tokens == num_seqs]
        begin = bisect_left(shapes, (num_tokens,))
        return next((shape for shape in shapes[begin:] if shape.holds(num_tokens, num_seqs, max_seq_len)), None)


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Each capture collects garbage first; what lives already need not be looked through a hundred times."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
