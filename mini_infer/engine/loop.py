"""The engine's loop: plan, submit, take the oldest result, update. One loop for every pipeline depth."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, EngineStats, TokensOut


class PendingStep(Protocol):
    """A submitted step. `result` waits for it; it does not raise for a failed step, it says so in the result."""

    def result(self) -> StepResult: ...

    def done(self) -> bool: ...


class Executor(Protocol):
    """Runs plans in the order of submission: on this process's device, on many, or simulated."""

    def submit(self, plan: StepPlan) -> PendingStep: ...


class EngineLoop:
    """Drives one scheduler and one executor.

    `pipeline_depth` is the number of plans that may be under way: 1 is synchronous; 2 lets the host plan step N + 1
    and read step N - 1's tokens while the device runs step N.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, pipeline_depth: int):
        self._scheduler = scheduler
        self._executor = executor
        self._depth = pipeline_depth
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()

    def add(self, request: AddRequest) -> None:
        """Queue a request. Raises RequestError when it can never be served."""
        self._scheduler.add(request)

    def abort(self, request_ids: list[int]) -> list[TokensOut]:
        """End requests wherever they are; unknown or finished ids are skipped."""
        return self._scheduler.abort(request_ids)

    def step(self) -> list[TokensOut]:
        """Submit plans up to the depth, then wait for the oldest and return what it brought."""
        while len(self._in_flight) < self._depth:
            plan = self._scheduler.schedule()
            if plan is None:
                break
            self._in_flight.append((plan, self._executor.submit(plan)))
        if not self._in_flight:
            return []
        plan, pending = self._in_flight.popleft()
        return self._scheduler.update(plan, pending.result())

    def has_work(self) -> bool:
        return bool(self._in_flight) or self._scheduler.has_work()

    def stats(self) -> EngineStats:
        return self._scheduler.stats()
