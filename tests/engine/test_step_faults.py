"""Steps that fail to start: their requests fail, and nothing else is touched, at any pipeline depth."""

from __future__ import annotations

from collections.abc import Set

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import DeviceLostError, StepPlan
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.loop import EngineLoop, StepFailedError
from mini_infer.engine.sim import SimExecutor, SimPending
from mini_infer.protocol import AddRequest, SamplingParams


class Fragile(SimExecutor):
    """Fails on some of the plans, before anything of them is on the device; and knows whose each slot is there."""

    def __init__(self, failing: Set[int]):
        super().__init__(range(10, 90))
        self._failing = failing
        self._num_plans = 0
        self._owners: dict[int, int] = {}

    def submit(self, plan: StepPlan) -> SimPending:
        self._num_plans += 1
        if self._num_plans in self._failing:
            raise StepFailedError("no memory")
        self._owners.update({admitted.slot: admitted.request_id for admitted in plan.admitted})
        for row in plan.seqs:
            assert self._owners[row.slot] == row.request_id, "a step on what another request left in its slot"
        return super().submit(plan)


def make_loop(executor: SimExecutor, depth: int, num_blocks: int = 24) -> tuple[Scheduler, EngineLoop]:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, block_size=4,
                             num_blocks=num_blocks)
    scheduler = Scheduler(config, lambda: 0.0)
    return scheduler, EngineLoop(scheduler, executor, depth)


@given(failing=st.sets(st.integers(1, 40), max_size=12), depth=st.integers(1, 3),
       lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_every_request_ends_and_every_block_returns(failing: set[int], depth: int,
                                                    lengths: list[tuple[int, int]]) -> None:
    scheduler, loop = make_loop(Fragile(failing), depth)
    for request_id, (prompt_len, max_tokens) in enumerate(lengths):
        loop.add(AddRequest(request_id, [7] * prompt_len, SamplingParams(max_tokens=max_tokens)))
    tokens = dict.fromkeys(range(len(lengths)), 0)
    ended: dict[int, str | None] = {}
    while loop.has_work():
        for out in loop.step():
            assert out.request_id not in ended
            tokens[out.request_id] += len(out.token_ids)
            if out.finish_reason is not None:
                ended[out.request_id] = out.finish_reason
                assert out.finish_reason == "length" or out.error == "no memory"
        scheduler.check()
    assert set(ended) == set(tokens) and scheduler.stats().used_blocks == 0
    for request_id, reason in ended.items():
        if reason == "length":
            assert tokens[request_id] == lengths[request_id][1]
    if not failing:
        assert set(ended.values()) == {"length"}


def test_what_an_exception_says_stays_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(SimExecutor):
        def submit(self, plan: StepPlan) -> SimPending:
            raise ValueError("secret")

    _, loop = make_loop(Broken([1]), 2)
    loop.add(AddRequest(1, [7], SamplingParams()))
    [out] = loop.step()
    assert out.finish_reason == "error" and out.error is not None and "secret" not in out.error
    assert "secret" in capsys.readouterr().err


def test_a_lost_device_ends_the_loop() -> None:
    class Lost(SimExecutor):
        def submit(self, plan: StepPlan) -> SimPending:
            raise DeviceLostError("gone")

    _, loop = make_loop(Lost([1]), 2)
    loop.add(AddRequest(1, [7], SamplingParams()))
    with pytest.raises(DeviceLostError):
        loop.step()
