"""The token embedding, which also serves as the output projection where a model ties the two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mini_infer.nn.parameter import empty_parameter
from mini_infer.ops.linear import linear, pack_weight
from mini_infer.ops.native import multiplies_one_row


class Embedding(nn.Module):
    """A row of `weight` [vocab_size, hidden_size] for each token."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        self.weight = empty_parameter(vocab_size, hidden_size, dtype=dtype)
        self.packed: torch.Tensor | None
        self.register_buffer("packed", None)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids int [T] -> [T, hidden_size], a new tensor."""
        return F.embedding(input_ids, self.weight)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [R, hidden_size] -> [R, vocab_size] by the same table (Press and Wolf 2017, arXiv:1608.05859)."""
        one_row = hidden.shape[0] == 1 and multiplies_one_row(self.weight)
        return linear(hidden, self.weight if self.packed is None or one_row else self.packed, out=out)

    def pack_for_logits(self) -> None:
        """Once loaded: where the fastest form to multiply with cannot be looked up in (on a CPU), keep both."""
        packed = pack_weight(self.weight)
        if packed is not self.weight:
            self.packed = packed
