"""Per-slot device tables, the one packed upload a step that keeps them in step with the scheduler, and the way back.

One int32 tensor holds everything the device knows of a slot, in three column ranges:

    | params (16) | block_table (max_blocks) | token_ids (max_model_len + 1) |

so that an admission is two runs of values (the first two ranges, then the tokens) and a new block is one. Sampled
tokens are written to `token_ids` by the device itself and never visit the host on the way to the next step; the host
finds them in the outbox, which the same kernel writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mini_infer.core.plan import StepPlan
from mini_infer.ops.inputs import scatter_runs

NUM_PARAMS = 16
HEADER_ROWS = 4
ALIGN = 4  # int32s, 16 bytes: where header rows start, else Triton compiles kernels once more for rows that do not
RING = 4  # buffers in turn: more than any pipeline depth, so none is rewritten before it has been read


@dataclass(frozen=True)
class Header:
    """A step's sequences on the device, int32, a column each (views of the uploaded header)."""

    turn: torch.Tensor  # [1], the row of the outbox that takes the sampled tokens
    slots: torch.Tensor  # [B]
    write_slots: torch.Tensor  # [B], the slot that receives the sampled token; the null slot when none is wanted
    seq_lens: torch.Tensor  # [B]
    cu_seqlens_q: torch.Tensor  # [B + 1]


def header_size(num_seqs: int) -> int:
    """int32s of the header of `num_seqs` sequences: the turn, and rows whose last columns may be unused."""
    return ALIGN + HEADER_ROWS * (-(-(num_seqs + 1) // ALIGN) * ALIGN)


class SlotState:
    """The slot table of `num_slots` slots plus the null slot, whose block table points at the null block throughout."""

    def __init__(self, num_slots: int, max_model_len: int, block_size: int, num_blocks: int, device: torch.device):
        self.num_slots = num_slots
        self.null_slot = num_slots
        self.max_blocks = -(-max_model_len // block_size)
        self._tokens_at = NUM_PARAMS + self.max_blocks
        width = self._tokens_at + max_model_len + 1
        self.table = torch.zeros(num_slots + 1, width, dtype=torch.int32, device=device)
        self.params = self.table[:, :NUM_PARAMS]
        self.block_table = self.table[:, NUM_PARAMS : self._tokens_at]
        self.token_ids = self.table[:, self._tokens_at :]
        self.block_table.fill_(num_blocks)  # the null block
        self._num_blocks_of = [0] * num_slots  # the host's mirror, to know where new blocks go
        # Header first, then the payload: the header's place never moves, so graphs can read it there.
        capacity = header_size(num_slots + 1) + max(1 << 16, 2 * width)
        self._upload = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._pinned = [self._host_buffer(capacity) for _ in range(RING)]
        self.outbox = self._host_buffer(RING * (num_slots + 1)).view(RING, -1)
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        return 4 * (self.table.numel() + self._upload.numel())

    def outgoing(self, num_seqs: int) -> torch.Tensor:
        """Where the host will find the tokens of the step that was uploaded last, int32 [num_seqs], until RING steps
        later. (Torch does not know who writes there: no step may be under way when this object goes.)"""
        return self.outbox[self._turn, :num_seqs]

    def upload(self, plan: StepPlan, param_rows: list[np.ndarray], num_seqs: int, num_tokens: int) -> Header:
        """Send what the plan changes: the header of its sequences, admitted slots, new blocks.

        param_rows: int32 [16] for each of `plan.admitted`. Sequences and tokens beyond the plan's are padding in the
        null slot, a token for each such sequence, any more to the first of them, and too few to the first ones.
        """
        runs, values = self._collect(plan, param_rows)
        head = header_size(num_seqs)
        size = head + sum(map(len, values))
        host = self._next_buffer(size)[:size]
        filled = host.numpy()
        filled[0] = self._turn
        self._fill_header(filled[ALIGN:head].reshape(HEADER_ROWS, -1), plan, num_seqs, num_tokens)
        if values:
            np.concatenate(values, out=filled[head:])
        if size <= self._upload.numel():
            self._upload[:size].copy_(host, non_blocking=True)
            payload = self._upload[head:size]
        else:  # many long prefix hits admitted at once: the payload gets a buffer of its own
            self._upload[:head].copy_(host[:head], non_blocking=True)
            payload = host[head:].to(self.table.device, non_blocking=True)
        if runs:
            table_size = 3 * len(runs)
            scatter_runs(self.table.view(-1), payload[:table_size].view(-1, 3), payload[table_size:],
                         max(length for _, length in runs))
        return self.header(num_seqs)

    def idle_header(self, num_seqs: int, num_tokens: int) -> Header:
        """A header of padding alone, with a token at least for each sequence. For warming up and capturing, before any
        step: their tokens go to the outbox too."""
        self.token_ids[self.null_slot].zero_()
        header = self.header(num_seqs)
        header.slots.fill_(self.null_slot)
        header.write_slots.fill_(self.null_slot)
        header.seq_lens.fill_(1)
        torch.arange(num_seqs + 1, out=header.cu_seqlens_q)
        header.seq_lens[0] += num_tokens - num_seqs
        header.cu_seqlens_q[1:] += num_tokens - num_seqs
        return header

    def warm_up(self) -> None:
        """Compile the kernel of `upload`, by copying nothing."""
        scatter_runs(self.table.view(-1), self._upload[:3].zero_().view(1, 3), self._upload, 1)

    def header(self, num_seqs: int) -> Header:
        """The device's view of an uploaded header of `num_seqs` sequences."""
        rows = self._upload[ALIGN : header_size(num_seqs)].view(HEADER_ROWS, -1)
        return Header(self._upload[:1], rows[0, :num_seqs], rows[1, :num_seqs], rows[2, :num_seqs],
                      rows[3, : num_seqs + 1])

    def _fill_header(self, header: np.ndarray, plan: StepPlan, num_seqs: int, num_tokens: int) -> None:
        count = len(plan.seqs)
        _, _, slots, starts, lengths, _, _, sample, _ = zip(*plan.seqs)
        counts = np.zeros(header.shape[1] - 1, dtype=np.int32)
        counts[:count] = lengths
        header[0, :count] = slots
        header[1, :count] = np.where(sample, header[0, :count], self.null_slot)
        header[2, :count] = np.array(starts, dtype=np.int32) + counts[:count]
        header[:2, count:] = self.null_slot
        if num_seqs > count:
            spare = num_tokens - int(counts[:count].sum())
            counts[count : count + min(spare, num_seqs - count)] = 1
            counts[count] += max(0, spare - (num_seqs - count))
        header[2, count:] = 0
        header[2, count:num_seqs] = counts[count:num_seqs]
        header[3, 0] = 0
        np.cumsum(counts, out=header[3, 1:])

    def _collect(self, plan: StepPlan, param_rows: list[np.ndarray]) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
        """The runs as (offset in the table, length), and the payload: their table [K, 3] first, then their values."""
        runs, values = [], []
        width = self.table.shape[1]
        for admitted, params in zip(plan.admitted, param_rows):
            base = admitted.slot * width
            runs += [(base, NUM_PARAMS + len(admitted.blocks)), (base + self._tokens_at, len(admitted.tokens))]
            values += [params, np.array(admitted.blocks, dtype=np.int32), np.array(admitted.tokens, dtype=np.int32)]
            self._num_blocks_of[admitted.slot] = len(admitted.blocks)
        for seq in plan.seqs:
            if seq.new_blocks:
                held = self._num_blocks_of[seq.slot]
                runs.append((seq.slot * width + NUM_PARAMS + held, len(seq.new_blocks)))
                values.append(np.array(seq.new_blocks, dtype=np.int32))
                self._num_blocks_of[seq.slot] = held + len(seq.new_blocks)
        if not runs:
            return runs, values
        targets, lengths = np.array(runs, dtype=np.int64).T
        table = np.stack([targets, lengths.cumsum() - lengths, lengths], axis=1).astype(np.int32)
        return runs, [table.ravel(), *values]

    def _next_buffer(self, size: int) -> torch.Tensor:
        self._turn = (self._turn + 1) % RING
        if self._pinned[self._turn].numel() < size:
            self._pinned[self._turn] = self._host_buffer(size)
        return self._pinned[self._turn]

    def _host_buffer(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, pin_memory=self.table.device.type == "cuda")
