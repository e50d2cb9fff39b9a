"""The device-side layout of a request's sampling parameters: one row of 16 int32 words per slot.

Words that hold a float are read as float32 (same bits). Only this file knows which word is which.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mini_infer.ops.dispatch import tl

NUM_PARAM_COLUMNS = 16

TEMPERATURE = tl.constexpr(0)  # float32, 0 is greedy
TOP_K = tl.constexpr(1)  # int32, 0 is off
TOP_P = tl.constexpr(2)  # float32, 1 is off
MIN_P = tl.constexpr(3)  # float32, 0 is off
REPETITION_PENALTY = tl.constexpr(4)  # float32, 1 is off
PRESENCE_PENALTY = tl.constexpr(5)  # float32, 0 is off
FREQUENCY_PENALTY = tl.constexpr(6)  # float32, 0 is off
KEY_LOW = tl.constexpr(7)  # the low 32 bits of the request's random key (ops/random.py)
KEY_HIGH = tl.constexpr(8)  # its high 32 bits
PROMPT_LEN = tl.constexpr(9)  # int32, tokens of the prompt; what follows in the token table is output


class RowParams(NamedTuple):
    """The parameters of R rows, each a tensor [R]; for the torch references."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32
    top_p: torch.Tensor  # float32
    min_p: torch.Tensor  # float32
    repetition_penalty: torch.Tensor  # float32
    presence_penalty: torch.Tensor  # float32
    frequency_penalty: torch.Tensor  # float32
    key: torch.Tensor  # int64, the 64 bits of the key
    prompt_len: torch.Tensor  # int32


def row_params(params: torch.Tensor, slots: torch.Tensor) -> RowParams:
    """Read the rows `slots` (int32 [R]) of `params` (int32 [num_slots + 1, 16], may be strided)."""
    rows = params.index_select(0, slots)
    integers, floats = rows.unbind(1), rows.view(torch.float32).unbind(1)
    low, high = integers[KEY_LOW.value].long(), integers[KEY_HIGH.value].long()
    return RowParams(
        temperature=floats[TEMPERATURE.value],
        top_k=integers[TOP_K.value],
        top_p=floats[TOP_P.value],
        min_p=floats[MIN_P.value],
        repetition_penalty=floats[REPETITION_PENALTY.value],
        presence_penalty=floats[PRESENCE_PENALTY.value],
        frequency_penalty=floats[FREQUENCY_PENALTY.value],
        key=(high << 32) | (low & 0xFFFFFFFF),
        prompt_len=integers[PROMPT_LEN.value],
    )
