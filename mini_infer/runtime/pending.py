"""A step under way on the device: its tokens are on the way to the host, and read when somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mini_infer.core.plan import DeviceLostError, SeqStep, StepPlan, StepResult
from mini_infer.ops.logprobs import TopLogprobs
from mini_infer.runtime.grammar import Fault
from mini_infer.runtime.sampler import INVALID_TOKEN, INVALID_TOKEN_MESSAGE, SampleOutput, unpack_logprobs


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of the prompt tokens that follow the chunk of the plan's sequence `index`."""

    index: int
    logprobs: TopLogprobs
    k: int


class DeviceStep:
    """What `Runner.execute` returns. The step's own kernel writes its tokens to the host, what else is wanted is copied
    from here, and one event marks the end of both.

    `token_ids`: where the tokens will be, int32 [B], on the host; later steps write there again (SlotState.outgoing).
    `failed`: rows that are known to have failed by their requests' own doing, and why.
    """

    def __init__(self, plan: StepPlan, token_ids: torch.Tensor, output: SampleOutput,
                 prompt_logprobs: Sequence[PromptLogprobs], failed: dict[int, Fault] | None = None):
        self._failed = failed or {}
        self._plan = plan
        self._output = output
        self._prompt_logprobs = prompt_logprobs
        self._token_ids = token_ids
        self._tokens: list[int] | None = None  # once read
        self._logprobs = [_to_host(tensor) for tensor in output.logprob_tensors]
        self._prompt_tensors = [[_to_host(tensor) for tensor in entry.logprobs] for entry in prompt_logprobs]
        self._event: torch.cuda.Event | None = None
        if output.token_ids.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def done(self) -> bool:
        return self._event is None or self._event.query()

    def wait_tokens(self) -> list[int]:
        """Each row's token, as soon as the step is through. Raises RuntimeError when the device failed."""
        if self._tokens is None:
            if self._event is not None:
                self._event.synchronize()
            self._tokens = self._token_ids.tolist()
        return self._tokens

    def result(self) -> StepResult:
        """Wait for the step. Raises DeviceLostError when the device has failed."""
        try:
            token_ids = self.wait_tokens()
        except RuntimeError as error:  # from now on every call to the device fails
            raise DeviceLostError("the GPU has failed") from error
        seqs = self._plan.seqs
        failed = {i: INVALID_TOKEN_MESSAGE for i, token in enumerate(token_ids)
                  if token == INVALID_TOKEN and seqs[i].sample}
        failed |= {row: fault.reason for row, fault in self._failed.items()}
        at_fault = {row: fault.param for row, fault in self._failed.items()}
        logprobs = {row: [entry] for row, entry in self._output.unpack(self._logprobs).items() if seqs[row].sample}
        prompt_logprobs = {entry.index: unpack_logprobs(tensors, [entry.k] * len(tensors[0]))
                           for entry, tensors in zip(self._prompt_logprobs, self._prompt_tensors)}
        return StepResult(self._plan.step_id, sampled=_sampled(seqs, token_ids), logprobs=logprobs,
                          prompt_logprobs=prompt_logprobs, failed=failed, at_fault=at_fault)


def _sampled(seqs: Sequence[SeqStep], token_ids: list[int]) -> list[list[int]]:
    return [[token] if seq.sample else [] for seq, token in zip(seqs, token_ids)]


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
