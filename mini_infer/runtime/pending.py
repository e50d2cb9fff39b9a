"""A step under way on the device: its tokens come to the host when somebody asks, not before."""

from __future__ import annotations

import torch

from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.runtime.sampler import LogprobsOutput, SampleOutput


def copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start copying to pinned host memory; complete once an event recorded afterwards is."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
