"""The local executor: this process's device runs the plans."""

from __future__ import annotations

import torch

from mini_infer.core.plan import DeviceLostError, StepPlan
from mini_infer.engine.loop import PendingStep, StepFailedError
from mini_infer.runtime.freed_memory import FreedMemory
from mini_infer.runtime.runner import Runner


class LocalExecutor:
    """`freed`: what its steps leave, where the device is a CPU."""

    def __init__(self, runner: Runner, freed: FreedMemory | None = None):
        self._runner = runner
        self._freed = freed

    def submit(self, plan: StepPlan) -> PendingStep:
        """Raises StepFailedError when there is no memory for the step, DeviceLostError when the device has failed."""
        if self._freed is not None:
            self._freed.give_back()
        try:
            return self._runner.execute(plan)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise StepFailedError(f"out of GPU memory in a step of {plan.num_tokens} tokens: lower "
                                  "max_num_batched_tokens or gpu_memory_utilization") from error
        except Exception as error:
            if torch.cuda.is_initialized():
                self._probe(error)
            raise

    def _probe(self, cause: Exception) -> None:
        """After an illegal access or a failed assertion in a kernel every call fails until the process ends."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise DeviceLostError(f"the GPU has failed ({type(cause).__name__})") from cause
