"""Linear layers. Weights are stored [out_features, in_features], as checkpoints have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from mini_infer.nn.norm import RMSNorm
from mini_infer.nn.parameter import empty_parameter
from mini_infer.ops.linear import linear, linear_add, norm_linear, norm_swiglu, pack_weight, starts_early
from mini_infer.ops.native import multiplies_one_row
from mini_infer.ops.stream import Stream


class Linear(nn.Module):
    """x [T, in_features] -> x W^T + b, [T, out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype):
        super().__init__()
        self.weight = empty_parameter(out_features, in_features, dtype=dtype)
        self.bias = empty_parameter(out_features, dtype=dtype) if bias else None
        self.packed: torch.Tensor | None
        self.register_buffer("packed", None, persistent=False)

    def weight_for(self, x: torch.Tensor | Stream) -> torch.Tensor:
        """The form of the weight that multiplies x [T, in_features] fastest."""
        return self.weight if self.packed is None or len(x) == 1 else self.packed

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x, self.weight_for(x), self.bias, out)

    def add_to(self, stream: Stream, x: torch.Tensor, next_norm: RMSNorm | None) -> None:
        """Add forward(x) to the stream [T, out_features], which `next_norm` reads next, if that is known."""
        linear_add(stream, x, self.weight_for(x), self.bias, next_norm.weight if next_norm is not None else None)

    def starts_early(self, rows: int) -> bool:
        """Whether the matmul with so many rows starts early and lets the next kernel do so (ops/pdl.py)."""
        return starts_early(rows, self.weight)

    def pack(self) -> None:
        """Once loaded, bring the weight into the form that this device multiplies with fastest: on a CPU a small one
        is kept in two, for one row and for more."""
        packed = pack_weight(self.weight)
        if packed is not self.weight and multiplies_one_row(self.weight):
            self.packed = packed
        else:
            self.weight = nn.Parameter(packed, requires_grad=False)


class MergedLinear(Linear):
    """Projections of one input as one matmul: `parts` maps each one's checkpoint name to its rows, top to bottom.

    Attention's is {"q_proj": Hq D, "k_proj": Hkv D, "v_proj": Hkv D}, the MLP's {"gate_proj": I, "up_proj": I}.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], bias: bool, dtype: torch.dtype):
        super().__init__(in_features, sum(parts.values()), bias, dtype)
        self.parts = dict(parts)

    def of_norm(self, stream: Stream, norm: RMSNorm) -> torch.Tensor:
        """forward(norm(stream))."""
        return norm_linear(stream, norm.weight, norm.eps, self.weight_for(stream), self.bias)

    def swiglu_of_norm(self, stream: Stream, norm: RMSNorm) -> torch.Tensor:
        """SiLU(gate) * up of forward(norm(stream)), the two parts being gate and up -> [T, out_features / 2]."""
        return norm_swiglu(stream, norm.weight, norm.eps, self.weight_for(stream), self.bias)


def weight_slots(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every place a checkpoint tensor goes, by name: the parameters of `model`, merged ones as a view of each part.

    The part "q_proj" of a merged layer "self_attn.qkv_proj" is called "self_attn.q_proj", as if it stood alone. There
    are views only until the weights are packed.
    """
    return dict(slot for path, module in model.named_modules() for slot in _slots(path, module))


def _slots(path: str, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, MergedLinear):
            parent = path.rpartition(".")[0]
            views = parameter.split(list(module.parts.values()))
            yield from ((f"{parent}.{part}.{name}", view) for part, view in zip(module.parts, views, strict=True))
        else:
            yield f"{path}.{name}", parameter
