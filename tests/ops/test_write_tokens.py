"""Sampled tokens go to the slot table and to the outbox, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from mini_infer.ops import inputs
from mini_infer.ops.inputs import write_tokens


@pytest.mark.parametrize("rows", [1, 256, 300])
@pytest.mark.parametrize("turn", [0, 3])
def test_kernel(device: torch.device, monkeypatch: pytest.MonkeyPatch, rows: int, turn: int) -> None:
    slots = torch.randperm(rows)
    positions = torch.randint(8, (rows,))
    tokens = torch.randint(-1, 1000, (rows,))
    table = torch.full((rows, 8), 7777)
    outbox = torch.full((4, rows + 5), 8888)
    want_table, want_outbox = table.clone(), outbox.clone()
    want_table[slots, positions] = tokens.clamp_min(0)
    want_outbox[turn, :rows] = tokens
    table, slots, positions, tokens = (each.int().to(device) for each in (table, slots, positions, tokens))
    outbox = outbox.int().pin_memory() if table.is_cuda else outbox.int()
    monkeypatch.setattr(inputs, "use_triton", lambda tensor: True)
    write_tokens(table, slots, positions, tokens, outbox, torch.tensor([turn], dtype=torch.int32, device=device))
    if table.is_cuda:
        torch.cuda.synchronize()
    assert table.tolist() == want_table.tolist()
    assert outbox.tolist() == want_outbox.tolist()
