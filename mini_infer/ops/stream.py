"""The residual stream: what a step's tokens have gathered, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mini_infer.ops.norm import add_rms_norm, rms_norm


@dataclass(frozen=True)
class HalfNormed:
    """rms_norm(x) of x [T, H] but for the division: scaled / sqrt(sum(squares) / H + eps).

    A kernel that leaves x can leave this too, one that multiplies can divide its sums: no norm has to run in between.
    """

    norm_weight: torch.Tensor  # [H]
    scaled: torch.Tensor  # [T, H]: x * norm_weight
    squares: torch.Tensor  # float32 [T, P]: those of P pieces of each row of x


class Stream:
    """[T, H] in the model's dtype. Layers read it through a norm, and add to it.

    A product of few rows over a long K keeps a GPU busy only if several blocks share a sum, and then somebody must add
    up their parts. Such a product is left in parts here, and the next norm adds them on its way: one kernel that reads
    and writes the stream instead of two. Another kind of product leaves the next norm half done.
    """

    def __init__(self, value: torch.Tensor):
        """value [T, H], dense: from now on the stream's own, which changes in place."""
        self._value = value
        self._parts: torch.Tensor | None = None
        self._half: HalfNormed | None = None

    def __len__(self) -> int:
        """T."""
        return len(self._value)

    @property
    def value(self) -> torch.Tensor:
        """[T, H]: all that has been added, rounded after each product. A later addition may change this tensor."""
        if self._parts is not None:
            self._value.copy_(self._value + self._parts.sum(0))
            self._parts = None
        return self._value

    @value.setter
    def value(self, value: torch.Tensor) -> None:
        assert self._parts is None
        self._value, self._half = value, None

    @property
    def target(self) -> torch.Tensor:
        """`value`, for who adds to it in place."""
        self._half = None
        return self.value

    @property
    def in_parts(self) -> bool:
        """Whether something is yet to be added, which the next norm should do."""
        return self._parts is not None

    def add_in_parts(self, parts: torch.Tensor) -> None:
        """Add the sum of these, float32 [S, T, H], with the next read."""
        self._value, self._parts = self.target, parts

    def begin_norm(self, half: HalfNormed) -> None:
        """What `half_normed` returns until something is added."""
        self._half = half

    def half_normed(self, norm_weight: torch.Tensor) -> HalfNormed | None:
        """The norm with this weight as far as it is done, if it is begun."""
        return self._half if self._half is not None and self._half.norm_weight is norm_weight else None

    def norm(self, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """rms_norm(value), [T, H]."""
        if self._parts is None:
            return rms_norm(self._value, weight, eps)
        parts, self._parts = self._parts, None
        return add_rms_norm(self._value, parts, weight, eps)
