"""The step plan: integers only, so it can be logged, replayed, broadcast to every rank and fed to a simulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mini_infer.protocol import SamplingParams, TokenLogprobs


@dataclass(frozen=True)
class AdmittedSlot:
    """A request takes a device slot: on first admission and again after each preemption.

    `tokens` are all tokens known so far (prompt, and the outputs of before a preemption); their keys and values are
    in the cache for the first `num_computed` of them. `blocks` is the whole block table at this moment.
    """

    slot: int
    request_id: int
    tokens: list[int]
    prompt_len: int
    num_computed: int
    blocks: list[int]
    params: SamplingParams


class DeviceLostError(RuntimeError):
    """The device cannot compute any more, whatever it is given; only a new process may find it well again."""


class SeqStep(NamedTuple):
    """`n` tokens of one sequence, from position `start` on, to be computed in this step.

    The device finds the tokens themselves in its slot table. `n_draft` of the `n` are speculative. `new_blocks`
    extend the block table. `sample`: the last position's logits give the next token, at position `start + n`.
    `prompt_logprobs`: return log-probabilities of the prompt tokens at positions start + 1 .. start + n.
    """

    request_id: int
    epoch: int
    slot: int
    start: int
    n: int
    n_draft: int
    new_blocks: list[int]
    sample: bool
    prompt_logprobs: bool


@dataclass(slots=True)
class StepPlan:
    step_id: int
    admitted: list[AdmittedSlot] = field(default_factory=list)
    seqs: list[SeqStep] = field(default_factory=list)
    released_slots: list[int] = field(default_factory=list)  # free since the last plan; applied before `admitted`
    num_decodes: int = 0  # first rows of `seqs`: running requests that missed one token, by length; then chunks

    @property
    def num_tokens(self) -> int:
        return sum(seq.n for seq in self.seqs)


@dataclass(slots=True)
class StepResult:
    """What a step computed, aligned with `StepPlan.seqs`.

    `sampled[i]` holds the tokens accepted for sequence i: [] when it was not asked to sample, one token, or more
    under speculation. `logprobs[i]` aligns with `sampled[i]`, present only for sequences that asked.
    `prompt_logprobs[i]`: one entry per prompt position of the chunk, where asked.
    `failed[i]`: a message when this sequence alone failed (its logits were not finite, say).
    `at_fault[i]`: the field of its request that made it fail, where the request can be blamed.
    `error`: the whole step failed; nothing else in the result counts.
    """

    step_id: int
    sampled: list[list[int]] = field(default_factory=list)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    at_fault: dict[int, str] = field(default_factory=dict)
    error: str | None = None
