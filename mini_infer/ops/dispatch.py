"""Which implementation of an op runs: the Triton kernel for tensors on a GPU, the torch reference elsewhere.

Each op lives in one file with both. Triton is absent from CPU installs; `jit` and `tl` then stand in just far enough
for the kernels to be defined (never to be run), so that the files read the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    HAS_TRITON = True
except ImportError:  # a CPU install

    class _Missing:
        """Stands for `triton` and `tl`: decorators pass through, annotations resolve to something."""

        class constexpr:
            """A module-level constant that kernels may read."""

            def __init__(self, value: Any):
                self.value = value

        def jit(self, fn: Any = None, **options: Any) -> Any:
            return (lambda kernel: kernel) if fn is None else fn

    triton = tl = TensorDescriptor = _Missing()  # type: ignore[assignment]
    HAS_TRITON = False


# Triton's own two serve kernels as well and take 2 to 4 µs a call; a layer of a prompt makes ten calls.


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below n, for n > 0."""
    return 1 << (n - 1).bit_length()


def use_triton(tensor: torch.Tensor) -> bool:
    """True when `tensor` lives on a GPU. Raises RuntimeError where it does but Triton is not installed."""
    if not tensor.is_cuda:
        return False
    if not HAS_TRITON:
        raise RuntimeError("a GPU needs Triton: pip install triton")
    return True


@cache
def is_hopper(device_index: int) -> bool:
    """Whether this GPU is NVIDIA's Hopper or a later one: what they all have, such as early launch."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device_index) >= (9, 0)


__all__ = ["HAS_TRITON", "TensorDescriptor", "cdiv", "is_hopper", "next_power_of_2", "tl", "triton", "use_triton"]
