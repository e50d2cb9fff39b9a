"""CUDA graphs of the step in which every sequence has one token: one for each batch size of a ladder."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

Outputs = tuple[torch.Tensor, ...]


def batch_ladder(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: dense where padding would cost a large share, sparse above."""
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, 513, 16)]
    return [size for size in sizes if size < max_num_seqs] + [min(max_num_seqs, 512)]


class StepGraphs:
    """Graphs of `run(batch_size)`, captured largest first into one memory pool, so that the smaller ones reuse it.

    `run` must read its inputs from fixed places on the device, where `prepare(batch_size)` puts valid ones for the
    capture, and be free of host synchronisation; what it returns is overwritten by the next replay of any graph here.
    """

    def __init__(self, prepare: Callable[[int], object], run: Callable[[int], Outputs], sizes: list[int]):
        self._sizes = sorted(sizes)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            prepare(size)
            run(size)  # compiles kernels and creates library handles outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = run(size)
            self._graphs[size] = (graph, outputs)

    def padded_size(self, num_seqs: int) -> int | None:
        """The smallest captured size that holds `num_seqs`, or None beyond the ladder."""
        index = bisect_left(self._sizes, num_seqs)
        return self._sizes[index] if index < len(self._sizes) else None

    def replay(self, size: int) -> Outputs:
        """Run the captured step; returns its output tensors, valid until the next replay."""
        graph, outputs = self._graphs[size]
        graph.replay()
        return outputs
