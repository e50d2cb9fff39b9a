"""Input preparation on the device: from the packed upload of a step to the tensors the model reads.

The host sends one int32 buffer a step: a header (four rows, a column per sequence) and runs of values for the slot
table. Tokens sampled by earlier steps are already in the slot table, so a decode step uploads no token at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from mini_infer.ops.dispatch import cdiv, tl, triton, use_triton

BLOCK = 256  # elements a program, whatever the size: each other value would be one more kernel to compile


T = TypeVar("T")


class Shared:
    """What a torch reference makes in a step's first layer and finds again in the others (kernels need none of it)."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when this step first asked for `key`."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@dataclass(frozen=True)
class ForwardBatch:
    """One step's inputs: T tokens of B sequences, ragged, in the order of the plan.

    There are no phases: a row is a prompt chunk (n > 1), a decode token (n == 1) or a token with its drafts.
    Padding rows (a graph's batch is rounded up) belong to the null slot, whose blocks are the null block.
    """

    input_ids: torch.Tensor  # int32 [T]
    positions: torch.Tensor  # int32 [T], position of each token in its sequence
    slot_mapping: torch.Tensor  # int32 [T], block * block_size + offset: where the token's K and V go
    cu_seqlens_q: torch.Tensor  # int32 [B + 1], sequence b owns tokens cu_seqlens_q[b] : cu_seqlens_q[b + 1]
    seq_lens: torch.Tensor  # int32 [B], tokens of b with K and V in the cache once this step's are written
    slots: torch.Tensor  # int32 [B], each sequence's row in `block_table`
    block_table: torch.Tensor  # int32 [num_slots + 1, max_blocks], may be a strided view (stride(1) == 1)
    logit_rows: torch.Tensor | None  # int32 [R], the tokens whose logits are needed; None: those of all T
    num_tokens: int  # T
    num_seqs: int  # B
    max_query_len: int  # upper bound on the tokens of b, 1 where each has one
    max_seq_len: int  # upper bound on seq_lens, for sizing grids
    num_decodes: int = 0  # so many sequences at the front are known to have one token each
    shared: Shared = field(default_factory=Shared, repr=False, compare=False)


def scatter_runs(state: torch.Tensor, runs: torch.Tensor, values: torch.Tensor, max_len: int) -> None:
    """Copy runs of `values` into the flat int32 `state`.

    runs: int32 [K, 3] of (offset in state, offset in values, length); max_len: the longest length (host integer).
    """
    if use_triton(state):
        _scatter_runs_kernel[(runs.shape[0], cdiv(max_len, BLOCK))](state, runs, values, BLOCK=BLOCK)
        return
    for target, source, length in runs.tolist():
        state[target : target + length] = values[source : source + length]


@triton.jit(do_not_specialize_on_alignment=["runs_ptr", "values_ptr"])
def _scatter_runs_kernel(state_ptr, runs_ptr, values_ptr, BLOCK: tl.constexpr):
    run = runs_ptr + tl.program_id(0) * 3
    target = tl.load(run).to(tl.int64)
    source = tl.load(run + 1)
    length = tl.load(run + 2)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < length
    tl.store(state_ptr + target + offs, tl.load(values_ptr + source + offs, mask=mask), mask=mask)


def prepare_inputs(slots: torch.Tensor, seq_lens: torch.Tensor, cu_seqlens_q: torch.Tensor, token_ids: torch.Tensor,
                   block_table: torch.Tensor, block_size: int, num_tokens: int, max_query_len: int,
                   ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gather the step's tokens from the slot table.

    slots, seq_lens: int32 [B]; cu_seqlens_q: int32 [B + 1]; token_ids: int32 [S + 1, L]; block_table: int32
    [S + 1, max_blocks]. Returns input_ids, positions, slot_mapping, each int32 [T].
    """
    if use_triton(slots):
        return _prepare_inputs_triton(slots, seq_lens, cu_seqlens_q, token_ids, block_table, block_size, num_tokens,
                                      max_query_len)
    return _prepare_inputs_torch(slots, seq_lens, cu_seqlens_q, token_ids, block_table, block_size, num_tokens,
                                 max_query_len)


def _prepare_inputs_torch(slots, seq_lens, cu_seqlens_q, token_ids, block_table, block_size, num_tokens,
                          max_query_len):
    if max_query_len == 1:
        rows, positions = slots, seq_lens - 1
    else:
        lens = cu_seqlens_q.diff()
        seq_of_token = torch.repeat_interleave(lens, output_size=num_tokens)
        rows = slots[seq_of_token]
        shift = seq_lens - cu_seqlens_q[1:]  # position minus index in the batch is the same for a whole sequence
        positions = torch.arange(num_tokens, dtype=torch.int32, device=slots.device) + shift[seq_of_token]
    block = block_table[rows, positions // block_size]
    return token_ids[rows, positions], positions, block * block_size + positions % block_size


def _prepare_inputs_triton(slots, seq_lens, cu_seqlens_q, token_ids, block_table, block_size, num_tokens,
                           max_query_len):
    # Rows that start at 16 bytes: kernels that read them are compiled once more for pointers that do not.
    out = torch.empty(3, -(-num_tokens // 4) * 4, dtype=torch.int32, device=slots.device)[:, :num_tokens]
    _prepare_inputs_kernel[(slots.shape[0], cdiv(max_query_len, BLOCK))](
        slots, seq_lens, cu_seqlens_q, token_ids, block_table, out[0], out[1], out[2],
        token_ids.stride(0), block_table.stride(0), BLOCK_SIZE=block_size, BLOCK=BLOCK)
    return out[0], out[1], out[2]


@triton.jit
def _prepare_inputs_kernel(slots_ptr, seq_lens_ptr, cu_ptr, token_ids_ptr, table_ptr, ids_ptr, positions_ptr,
                           mapping_ptr, token_stride, table_stride, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    seq = tl.program_id(0)
    slot = tl.load(slots_ptr + seq).to(tl.int64)
    first = tl.load(cu_ptr + seq)
    n = tl.load(cu_ptr + seq + 1) - first
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    positions = tl.load(seq_lens_ptr + seq) - n + offs
    ids = tl.load(token_ids_ptr + slot * token_stride + positions, mask=mask, other=0)
    blocks = tl.load(table_ptr + slot * table_stride + positions // BLOCK_SIZE, mask=mask, other=0)
    tl.store(ids_ptr + first + offs, ids, mask=mask)
    tl.store(positions_ptr + first + offs, positions, mask=mask)
    tl.store(mapping_ptr + first + offs, blocks * BLOCK_SIZE + positions % BLOCK_SIZE, mask=mask)


def write_tokens(token_ids: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor,
                 outbox: torch.Tensor, turn: torch.Tensor) -> None:
    """outbox[turn, r] = tokens[r] for the host; and token_ids[slots[r], positions[r]] = max(tokens[r], 0) for the next
    step.

    token_ids: int32 [S + 1, L]; slots, positions, tokens: int32 [R]; outbox: int32 [turns, R or more], for a GPU in
    pinned memory of the host; turn: int32 [1]. A failed row (-1) becomes 0, a token that the embedding can look up: the
    steps already in flight for that request run on and are dropped.
    """
    if use_triton(token_ids):
        rows = slots.shape[0]
        _write_tokens_kernel[(cdiv(rows, BLOCK),)](token_ids, slots, positions, tokens, outbox, turn, rows,
                                                   token_ids.stride(0), outbox.stride(0), BLOCK=BLOCK)
        return
    token_ids[slots, positions] = tokens.clamp_min(0)
    outbox[int(turn), : len(tokens)] = tokens


@triton.jit(do_not_specialize=["num_rows"])
def _write_tokens_kernel(token_ids_ptr, slots_ptr, positions_ptr, tokens_ptr, outbox_ptr, turn_ptr, num_rows,
                         token_stride, outbox_stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_rows
    slot = tl.load(slots_ptr + rows, mask=mask, other=0).to(tl.int64)
    position = tl.load(positions_ptr + rows, mask=mask, other=0)
    token = tl.load(tokens_ptr + rows, mask=mask, other=0)
    tl.store(outbox_ptr + tl.load(turn_ptr) * outbox_stride + rows, token, mask=mask)
    tl.store(token_ids_ptr + slot * token_stride + position, tl.maximum(token, 0), mask=mask)
