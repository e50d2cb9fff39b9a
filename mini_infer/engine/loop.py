"""The engine's loop: plan, submit, take the oldest result, update. One loop for every pipeline depth."""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from typing import Protocol

from mini_infer.core.plan import DeviceLostError, StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.view import StepTrace, look
from mini_infer.protocol import AddRequest, EngineStats, EngineView, Timeline, TokensOut


class PendingStep(Protocol):
    """A submitted step. `result` waits for it; it raises nothing but DeviceLostError: of a failed step the result says
    so."""

    def result(self) -> StepResult: ...

    def done(self) -> bool: ...


class Executor(Protocol):
    """Runs plans in the order of submission: on this process's device, on many, or simulated.

    A plan that cannot be started makes `submit` raise: the requests in it fail, and the engine goes on. What the
    exception says of itself is for the log, `StepFailedError` for the requests. After DeviceLostError nothing goes on.
    """

    def submit(self, plan: StepPlan) -> PendingStep: ...


class StepFailedError(RuntimeError):
    """A step could not be started, for a reason that its requests may know."""


class FailedStep:
    """A step that could not be started."""

    def __init__(self, step_id: int, error: str):
        self._result = StepResult(step_id, error=error)

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        return self._result


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
        self._trace: StepTrace | None = None  # while somebody watches
        self._held = False  # a step in flight could not be started, and nothing is planned on top of it
        self._launching: float | None = None  # since when a step is being started, by time.monotonic

    def add(self, request: AddRequest) -> None:
        """Queue a request. Raises RequestError when it can never be served."""
        self._scheduler.add(request)

    def abort(self, request_ids: list[int], reason: str = "abort") -> list[TokensOut]:
        """End requests wherever they are; unknown or finished ids are skipped."""
        return self._scheduler.abort(request_ids, reason)

    def step(self) -> list[TokensOut]:
        """Submit plans up to the depth, then wait for the oldest and return what it brought."""
        while len(self._in_flight) < self._depth and not self._held:
            plan = self._scheduler.schedule()
            if plan is None:
                break
            if self._trace is not None:
                self._trace.submit(plan)
            self._in_flight.append((plan, self._submit(plan)))
        if not self._in_flight:
            return []
        plan, pending = self._in_flight.popleft()
        result = pending.result()
        if isinstance(pending, FailedStep):
            self._held = False
        if self._trace is not None:
            self._trace.finish(plan)
        return self._scheduler.update(plan, result)

    def _submit(self, plan: StepPlan) -> PendingStep:
        """A step that fails to start has perhaps not brought its slots to the device. A plan on top of it would run on
        what the slots held before, and write into blocks of others; so there is none before this one is taken in."""
        self._launching = time.monotonic()
        try:
            return self._executor.submit(plan)
        except DeviceLostError:
            raise
        except Exception as error:  # a fault in one step must not take the engine down
            print(f"mini-infer engine: step {plan.step_id} with {plan.num_tokens} tokens failed:", file=sys.stderr)
            traceback.print_exc()
            self._held = True
            why = str(error) if isinstance(error, StepFailedError) else "the engine failed in a step of this request"
            return FailedStep(plan.step_id, why)
        finally:
            self._launching = None

    def launching_since(self) -> float | None:
        """When the step that is being started was begun, in seconds of `time.monotonic`; None when there is none. May
        be asked by another thread."""
        return self._launching

    def has_work(self) -> bool:
        return bool(self._in_flight) or self._scheduler.has_work()

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def close(self) -> None:
        """The engine is about to end."""
        self._scheduler.close()

    def take_timelines(self) -> list[Timeline]:
        """Of the requests that ended since the last call."""
        return self._scheduler.take_timelines()

    def look(self) -> EngineView:
        """What the engine is doing. The first look starts a trace of steps, which `look_away` ends."""
        if self._trace is None:
            self._trace = StepTrace(self._scheduler.now)
        return look(self._scheduler, self._trace)

    def look_away(self) -> None:
        self._trace = None
