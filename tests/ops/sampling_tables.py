"""Device tables for tests of the sampling ops, and an oracle in float64 for what a row may draw."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are defined, so before their import

from mini_infer.ops.sampling import CHUNK  # noqa: E402

GAP = 5  # columns between the parameters and whatever follows, so that strides matter


@dataclass(frozen=True)
class Row:
    """The sampling parameters of one slot."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    key: int = 0
    prompt_len: int = 0


def params_table(rows: Sequence[Row]) -> torch.Tensor:
    """int32 [len(rows) + 1, 16], strided; the last row is padding."""
    table = np.zeros((len(rows) + 1, 16 + GAP), dtype=np.int32)
    for words, row in zip(table, rows):
        floats = words.view(np.float32)
        floats[0], words[1], floats[2], floats[3] = row.temperature, row.top_k, row.top_p, row.min_p
        floats[4:7] = row.repetition, row.presence, row.frequency
        words.view(np.uint32)[7:9] = row.key & 0xFFFFFFFF, row.key >> 32
        words[9] = row.prompt_len
    return torch.from_numpy(table).to(DEVICE)[:, :16]


def int32(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def kept_weights(logits: torch.Tensor, row: Row, slack: float = 0.0) -> torch.Tensor:
    """Unnormalised probabilities in float64 after temperature, min_p, top_k and top_p; 0 for what is filtered out.

    `slack` moves the cuts of min_p and top_p by that much, relatively. Written for plainness, with a sort.
    """
    x = logits.double().cpu()
    weights = ((x - x.max()) / row.temperature).exp()
    threshold = torch.tensor(-torch.inf).double()
    if row.min_p > 0:
        threshold = x.max() + row.temperature * np.log(row.min_p * (1 + slack))
    if row.top_k > 0:
        threshold = max(threshold, x.sort(descending=True).values[row.top_k - 1])
    weights[x < threshold] = 0
    if row.top_p < 1:
        order = x.argsort(descending=True)
        cumulative = weights[order].cumsum(0)
        last = int((cumulative < row.top_p * (1 + slack) * cumulative[-1]).sum().clamp(max=len(x) - 1))
        weights[x < x[order[last]]] = 0
    return weights


def may_draw(token: int, logits: torch.Tensor, row: Row, u1: float, u2: float, slack: float = 1e-4) -> bool:
    """Whether the two-level draw with these uniforms gives `token`, but for rounding of relative size `slack`."""
    for cut_slack in (0.0, slack, -slack):
        weights = kept_weights(logits, row, cut_slack)
        if weights[token] == 0:
            continue
        chunks = torch.nn.functional.pad(weights, (0, -len(weights) % CHUNK)).view(-1, CHUNK)
        chunk, inside = divmod(token, CHUNK)
        if _near(chunks.sum(1), u1, chunk, slack) and _near(chunks[chunk], u2, inside, slack):
            return True
    return False


def _near(weights: torch.Tensor, u: float, index: int, slack: float) -> bool:
    cumulative = weights.cumsum(0) / weights.sum()
    below = float(cumulative[index - 1]) if index else 0.0
    return below - slack <= u <= float(cumulative[index]) + slack
