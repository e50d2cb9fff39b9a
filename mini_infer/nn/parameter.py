"""Parameters before they have values."""

from __future__ import annotations

import torch
from torch import nn


def empty_parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter to be filled by the loader, on the device of the surrounding `with torch.device(...)`."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
