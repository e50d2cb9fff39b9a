"""A scheduling policy of your own: shortest prompt first.

    python examples/custom_policy.py

The scheduler is plain Python, so it runs here without a model: the "device" below answers every step at once. To use a
policy in a real engine, put it in a module that calls `register_policy` and name both:
`LLM(..., plugins=("my_module",), scheduling_policy="shortest-prompt-first")`.
"""

from __future__ import annotations

import time

from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.policy import SchedulingPolicy, register_policy
from mini_infer.core.request import Request
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, SamplingParams


class ShortestPromptFirst(SchedulingPolicy):
    """Lowers the mean waiting time; a long prompt may wait as long as shorter ones keep coming."""

    def key(self, request: Request) -> tuple[int, float]:
        return (request.prompt_len, request.arrival)


register_policy("shortest-prompt-first", ShortestPromptFirst)


def compute(plan: StepPlan) -> StepResult:
    """Stands in for the device: every sampled token is a 7."""
    return StepResult(plan.step_id, [[7] if row.sample else [] for row in plan.seqs])


def finishing_order(policy: str, prompt_lens: list[int]) -> list[int]:
    """Serve one prompt of each length, two at a time; returns the lengths in the order in which they finish."""
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=256, block_size=16,
                             num_blocks=64, policy=policy)
    scheduler = Scheduler(config, clock=time.monotonic)
    for request_id, length in enumerate(prompt_lens):
        scheduler.add(AddRequest(request_id, [1] * length, SamplingParams(max_tokens=4)))
    finished = []
    while (plan := scheduler.schedule()) is not None:
        finished += [out.request_id for out in scheduler.update(plan, compute(plan)) if out.finish_reason]
    return [prompt_lens[request_id] for request_id in finished]


if __name__ == "__main__":
    lens = [200, 120, 10, 60, 30]
    print("prompt lengths as they came:          ", lens)
    for name in ("fcfs", "shortest-prompt-first"):
        print(f"finished under {name + ':':<23}", finishing_order(name, lens))
