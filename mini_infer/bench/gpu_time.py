"""Timing on a GPU: graphs of many calls, cold caches, and the two ceilings that a floor is counted from."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from mini_infer.config import ConfigError

L2_BYTES = 128 << 20  # more than any L2 cache: calls that touch so much in turn find nothing of their own in it
REPLAYS = 7


def require_gpu() -> str:
    """The GPU's name. Raises ConfigError where there is none."""
    if not torch.cuda.is_available():
        raise ConfigError("kernels are compared on a CUDA GPU, and this machine has none; what runs on a CPU is torch "
                          "itself, which benchmarks/compare_transformers.py measures as a whole")
    return torch.cuda.get_device_name()


def copies_for(num_bytes: int) -> int:
    """How many sets of inputs of `num_bytes` to take in turn, so that each is read from memory."""
    return max(2, min(64, -(-L2_BYTES // max(1, num_bytes))))


def graph_time(run: Callable[[int], object], copies: int) -> float:
    """Seconds of run(i), i over the copies, as the median of replays of one graph: no launch is waited for."""
    for i in range(copies):
        run(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            run(i)
    graph.replay()
    return statistics.median(_timed(graph.replay) for _ in range(REPLAYS)) / copies


def _timed(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Ceilings:
    """What this GPU does at best, measured on it."""

    bytes_per_s: float  # of a large copy, reading and writing counted
    flops_per_s: float  # of a large bf16 matmul of random data

    def floor(self, num_bytes: float, flops: float = 0.0) -> float:
        """Seconds that work takes at least."""
        return max(num_bytes / self.bytes_per_s, flops / self.flops_per_s)


@cache
def ceilings() -> Ceilings:
    source = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    # As a node of a graph the driver's own copy may run at two thirds of what a kernel reaches.
    copy = min(graph_time(lambda i: target.copy_(source), 4), graph_time(lambda i: torch.neg(source, out=target), 4))
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = graph_time(lambda i: a @ b, 4)
    return Ceilings(2 * source.nbytes / copy, 2 * size**3 / product)
