"""The first steps on a GPU, played before the weights are there: what they take, and which kernels they launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mini_infer.config import ConfigError, ModelConfig
from mini_infer.engine.defaults import Limits
from mini_infer.models.adapter import ModelAdapter
from mini_infer.models.decoder import Decoder
from mini_infer.models.loader import build_model
from mini_infer.runtime.compile_ahead import CompileAhead
from mini_infer.runtime.runner import Runner

GRAPH_BYTES_A_LAYER = 80 << 10  # of the driver, for the kernels of one layer in one graph, as an H200 showed


@dataclass(frozen=True)
class Rehearsal:
    """Bytes on the device beyond weights and KV pool, and the kernels that are being compiled."""

    runner: int  # slot table and buffers
    workspace: int  # the largest step's activations
    graphs: int  # an estimate; 0 without graphs
    kernels: CompileAhead

    @property
    def num_bytes(self) -> int:
        return self.runner + self.workspace + self.graphs


@torch.inference_mode()
def rehearse(config: ModelConfig, adapter: ModelAdapter, dtype: torch.dtype, device: torch.device, limits: Limits,
             make_runner: Callable[[Decoder], Runner], with_graphs: bool) -> Rehearsal:
    """Play the largest step and every step that becomes a graph on a model of few layers without weights.

    Activations do not depend on the number of layers, nor do kernels: it has as many as show all there are.
    Raises ConfigError when the device has no memory for such a step.
    """
    try:
        return _rehearse(config, adapter, dtype, device, limits, make_runner, with_graphs)
    except torch.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        raise ConfigError(f"max_num_batched_tokens: {device} has {free / 2**30:.1f} GiB free, too little for a step of "
                          f"{limits.largest_step} tokens; lower it and max_num_seqs, or free the device") from None


def _rehearse(config: ModelConfig, adapter: ModelAdapter, dtype: torch.dtype, device: torch.device, limits: Limits,
              make_runner: Callable[[Decoder], Runner], with_graphs: bool) -> Rehearsal:
    num_tokens = limits.largest_step
    kernels = CompileAhead(device)
    model = build_model(shallow(config), adapter, dtype)
    model.materialize(device, num_tokens)
    before = torch.cuda.memory_allocated(device)
    runner = make_runner(model)
    runner_bytes = torch.cuda.memory_allocated(device) - before
    with kernels.rehearsal():
        workspace = _peak(lambda: runner.warm_up(num_tokens), device)
        runner.rehearse(num_tokens)
        graphs = _peak(runner.rehearse_graphs, device)
    graphs += runner.num_graphs * config.num_layers * GRAPH_BYTES_A_LAYER
    return Rehearsal(runner_bytes, workspace, graphs if with_graphs else 0, kernels)


def shallow(config: ModelConfig) -> ModelConfig:
    """With the fewest layers that show every attention window, and one more: the last goes on with few tokens."""
    windows = config.sliding_windows
    depth = min(config.num_layers, max(windows.index(window) for window in set(windows)) + 2)
    return replace(config, num_layers=depth, sliding_windows=windows[:depth])


def _peak(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that the allocator takes from the device for `step`, beyond what is in use."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    step()
    return torch.cuda.max_memory_reserved(device) - before
