"""CUDA graphs of the step in which every sequence has one token: one for each batch size and context of a ladder."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Outputs = tuple[torch.Tensor, ...]
MAX_BATCH = 512


def batch_ladder(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: dense where padding would cost a large share, sparse above."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, MAX_BATCH + 1, 32)]
    return [size for size in sizes if size < max_num_seqs] + [min(max_num_seqs, MAX_BATCH)]


def context_ladder(max_model_len: int) -> list[int]:
    """Context lengths to capture for. The grid of decode attention is fixed in a graph, sized for the longest context;
    a short one would mostly start blocks that find nothing to do, and merge splits that are not there."""
    return [length for length in (1024, 4096) if length < max_model_len] + [max_model_len]


class StepGraphs:
    """Graphs of `run(batch_size, max_seq_len)`, captured largest first into one memory pool, which the smaller reuse.

    `run` must read its inputs from fixed places on the device, where `prepare(batch_size)` puts valid ones for the
    capture, and be free of host synchronisation; every kernel that it launches must have been loaded already
    (engine/rehearsal.py). What it returns is overwritten by the next replay of any graph here.
    """

    def __init__(self, prepare: Callable[[int], object], run: Callable[[int, int], Outputs], sizes: Sequence[int],
                 lengths: Sequence[int]):
        self._sizes, self._lengths = sorted(sizes), sorted(lengths)
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        pool = torch.cuda.graph_pool_handle()
        with _cheap_collections():
            for size in reversed(self._sizes):
                prepare(size)
                for length in reversed(self._lengths):
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=pool):
                        outputs = run(size, length)
                    self._graphs[size, length] = (graph, outputs)

    def padded_size(self, num_seqs: int) -> int | None:
        """The smallest captured size that holds `num_seqs`, or None beyond the ladder."""
        index = bisect_left(self._sizes, num_seqs)
        return self._sizes[index] if index < len(self._sizes) else None

    def replay(self, size: int, max_seq_len: int) -> Outputs:
        """Run the captured step of a captured size; returns its output tensors, valid until the next replay."""
        length = self._lengths[bisect_left(self._lengths, max_seq_len)]
        graph, outputs = self._graphs[size, length]
        graph.replay()
        return outputs


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Each capture collects garbage first; what lives already need not be looked through a hundred times."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
