"""Programmatic dependent launch changes when kernels start and nothing else."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import cuda_few, pdl
from mini_infer.ops.linear import linear_add, norm_linear, norm_swiglu
from mini_infer.ops.stream import Stream

HIDDEN, INNER, LAYERS = 1024, 3072, 12


def test_off_without_a_gpu():
    assert pdl.pdl_options(torch.zeros(1), 1) == {"PDL": False}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 8, 16, 64])
@pytest.mark.parametrize("products", ["as chosen", "triton", "cuda"])
def test_same_bits_with_and_without(monkeypatch, rows, products):
    """Every kernel of the chain overwrites what the one before it reads, and reads what that one has written."""
    if not pdl.pdl_options(torch.zeros(1, device="cuda"), 1)["PDL"]:
        pytest.skip("this GPU has no programmatic dependent launch")
    if products == "triton":
        monkeypatch.setattr(cuda_few, "blocks_for", lambda *product: None)
    elif products == "cuda":
        if not cuda_few.LIBRARY.exists():
            pytest.skip("the CUDA kernels are not built: make build-ext")
        monkeypatch.setattr(cuda_few, "blocks_for", lambda rows, features, k, gated, dtype, multiprocessors:
                            cuda_few.enough_blocks(features, k, gated, multiprocessors))
    torch.manual_seed(rows)

    def weight(out_features: int, in_features: int) -> torch.Tensor:
        return torch.randn(out_features, in_features, dtype=torch.bfloat16, device="cuda") / in_features**0.5

    layers = [(weight(2 * HIDDEN, HIDDEN), weight(HIDDEN, 2 * HIDDEN), weight(2 * INNER, HIDDEN), weight(HIDDEN, INNER))
              for _ in range(LAYERS)]
    norm_weight = torch.rand(HIDDEN, dtype=torch.bfloat16, device="cuda") + 0.5
    start = torch.empty(rows, HIDDEN, dtype=torch.bfloat16, device="cuda")

    def chain() -> torch.Tensor:
        stream = Stream(start.clone())
        for w_in, w_out, w_up, w_down in layers:
            linear_add(stream, norm_linear(stream, norm_weight, 1e-6, w_in, None), w_out, None, norm_weight)
            linear_add(stream, norm_swiglu(stream, norm_weight, 1e-6, w_up, None), w_down, None, norm_weight)
        return stream.norm(norm_weight, 1e-6)

    def captured() -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        chain()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain()
        return graph, out

    early_graph, early = captured()
    monkeypatch.setattr(pdl, "is_hopper", lambda device_index: False)
    plain_graph, plain = captured()
    for _ in range(30):
        start.normal_()
        plain_graph.replay()
        early_graph.replay()
        assert plain.isfinite().all() and torch.equal(early, plain)
