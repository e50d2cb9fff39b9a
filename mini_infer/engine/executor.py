"""The local executor: this process's device runs the plans."""

from __future__ import annotations

import torch

from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.engine.loop import PendingStep
from mini_infer.runtime.runner import Runner


class FailedStep:
    """A step that could not be started; the requests in it fail, the engine goes on."""

    def __init__(self, step_id: int, error: str):
        self._result = StepResult(step_id, error=error)

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._result


class LocalExecutor:
    def __init__(self, runner: Runner):
        self._runner = runner

    def submit(self, plan: StepPlan) -> PendingStep:
        try:
            return self._runner.execute(plan)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return FailedStep(plan.step_id, f"out of GPU memory in a step of {plan.num_tokens} tokens: "
                                            f"lower max_num_batched_tokens or gpu_memory_utilization ({error})")
        except Exception as error:  # a fault in one step must not take the engine down
            return FailedStep(plan.step_id, f"{type(error).__name__} in a step of {plan.num_tokens} tokens: {error}")
