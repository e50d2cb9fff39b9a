"""Programmatic dependent launch: a kernel starts while the one before it in the stream still runs.

A decode step is some two hundred kernels of a few microseconds, and each would start with the memory idle. Launched
with `pdl_options`, a kernel may start once every program of the one before has called `let_next_start` (or ended), and
`wait_for_previous` holds it until the one before has ended and all it wrote can be seen. What a kernel does before
that call runs beside the kernels before it, several of them perhaps, so there it may only read what no kernel of the
layers writes: weights, tables, the step's inputs, keys and values of earlier steps. Every kernel launched so must
wait, and writes nothing before it has; then a kernel that has waited knows that all before it have ended.

Kernels that are not ours (torch, cuBLAS, whose kernels start early behind each other) do not let ours start early, nor
start before ours have ended; next to them the order is the usual one.
"""

from __future__ import annotations

from typing import Any

import torch

from mini_infer.ops.dispatch import is_hopper, tl, triton

# Above, most matmuls are cuBLAS's, and a kernel between two of them that is launched so costs 0.6 us more, not less.
MOST_ROWS = 8


def pdl_options(tensor: torch.Tensor, num_rows: int, between_early: bool = False) -> dict[str, Any]:
    """Launch options for a kernel with a constexpr `PDL` that works on `tensor`, in a step of `num_rows` tokens: on
    where the GPU can do it and it pays, else off. `between_early`: its neighbours start early with any number."""
    if (between_early or num_rows <= MOST_ROWS) and tensor.is_cuda and is_hopper(tensor.device.index):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """The kernel after this one may take the room that is left; a hint that changes no result."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Hold until the kernel before this one has ended."""
    if PDL:
        tl.extra.cuda.gdc_wait()


__all__ = ["MOST_ROWS", "let_next_start", "pdl_options", "wait_for_previous"]
