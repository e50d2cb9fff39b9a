"""The KV cache: one tensor of blocks for all layers, and how many of them there is memory for."""

from __future__ import annotations

import math

import numpy as np
import torch

from mini_infer.config import ModelConfig


class KVPool:
    """Keys and values of `num_blocks` blocks, plus the null block that padding rows write to and read from.

    data: [num_layers, 2, num_blocks + 1, num_kv_heads, block_size, head_dim] in the model's dtype. Heads come before
    tokens so that what one head reads of a block is contiguous.
    """

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_layers, 2, num_blocks + 1, config.num_kv_heads, block_size, config.head_dim)
        self.data = _zeros(shape, dtype, device)  # a masked-out score of 0 times leftover garbage could be NaN
        self.num_blocks = num_blocks
        self.block_size = block_size

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(k_cache, v_cache) of each layer, each [num_blocks + 1, num_kv_heads, block_size, head_dim]."""
        return [(layer[0], layer[1]) for layer in self.data]

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU, memory that the system zeroes when it is first touched, so that a large pool starts at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    data = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).view(shape)
