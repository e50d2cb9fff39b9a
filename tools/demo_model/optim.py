"""Muon for the matrices of the layers, AdamW for everything else, and the learning rate's course."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(batch: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration: brings the singular values of a batch of matrices near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if wide else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized; matrices of one shape are done together.

    The update is scaled to the size that AdamW's would have, so that one learning rate suits both.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in self.param_groups[0]["params"]:
            by_shape.setdefault(weight.shape, []).append(weight)
        self.shapes = list(by_shape.values())
        self.momenta = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.shapes]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of all matrices."""
        options = self.param_groups[0]
        for weights, momentum in zip(self.shapes, self.momenta, strict=True):
            gradients = torch.stack([weight.grad for weight in weights])
            momentum.lerp_(gradients, 1 - options["momentum"])
            update = orthogonalize(torch.lerp(gradients, momentum, options["momentum"]))
            scale = 0.2 * max(weights[0].shape) ** 0.5
            torch._foreach_mul_(weights, 1 - options["lr"] * options["weight_decay"])
            torch._foreach_add_(weights, list(update.float().unbind(0)), alpha=-options["lr"] * scale)


def make_optimizers(
    model: nn.Module, lr: float, embedding_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for what lies in the layers and has two dimensions, AdamW for embedding and norms."""
    matrices = [w for n, w in model.named_parameters() if w.ndim == 2 and "layers" in n]
    others = [w for n, w in model.named_parameters() if w.ndim != 2 or "layers" not in n]
    fused = others[0].is_cuda
    return [
        Muon(matrices, lr, weight_decay=weight_decay),
        torch.optim.AdamW(others, embedding_lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=fused),
    ]


def learning_rate(step: int, steps: int, warmup: int = 50, decay_share: float = 0.6) -> float:
    """Factor on the learning rate: warm-up, a plateau, then a straight line to almost nothing."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (decay_share * steps))
    return rise * max(fall, 0.002)
