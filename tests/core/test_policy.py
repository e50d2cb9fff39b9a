"""Policies, their registry and the waiting queue."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import ConfigError, SchedulerConfig
from mini_infer.core import policy as policy_module
from mini_infer.core.policy import FCFS, Priority, SchedulingPolicy, make_policy, register_policy
from mini_infer.core.request import Request, RequestStatus
from mini_infer.core.waiting import WaitingQueue
from mini_infer.protocol import AddRequest, SamplingParams
from tests.core.shadow import Engine


def request(order: int, priority: int = 0, arrival: float = 0.0) -> Request:
    item = AddRequest(order, [1], SamplingParams(), priority)
    return Request.create(item, order, order, arrival, max_model_len=16, eos_token_ids=())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_FACTORIES", dict(policy_module._FACTORIES))


class TestRegistry:
    def test_built_in(self) -> None:
        assert isinstance(make_policy("fcfs"), FCFS)
        assert isinstance(make_policy("priority"), Priority)

    def test_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(ConfigError, match=r"'lottery' is not known; known: fcfs, priority"):
            make_policy("lottery")

    def test_register(self, registry: None) -> None:
        class Newest(SchedulingPolicy):
            def key(self, request: Request) -> tuple[float]:
                return (-request.order,)

        register_policy("newest", Newest)
        register_policy("newest", Newest)  # a module that is imported twice does no harm
        assert isinstance(make_policy("newest"), Newest)
        with pytest.raises(ConfigError, match="registered already"):
            register_policy("fcfs", Newest)

    def test_custom_policy_drives_the_scheduler(self, registry: None) -> None:
        class Newest(SchedulingPolicy):
            def key(self, request: Request) -> tuple[float]:
                return (-request.order,)

        register_policy("newest", Newest)
        engine = Engine(SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=8, block_size=4,
                                        num_blocks=8, policy="newest"))
        for i in range(3):
            engine.add(AddRequest(i, [1, 2], SamplingParams(max_tokens=2)))
        engine.run()
        assert [a.request_id for plan in engine.plans for a in plan.admitted] == [2, 1, 0]

    def test_example_runs(self, registry: None, repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runpy.run_path(str(repo / "examples" / "custom_policy.py"), run_name="__main__")
        out = capsys.readouterr().out
        assert "fcfs" in out and "shortest-prompt-first" in out


class TestKeys:
    def test_fcfs(self) -> None:
        assert FCFS().key(request(0, priority=9, arrival=1.0)) < FCFS().key(request(1, priority=0, arrival=2.0))

    def test_priority(self) -> None:
        key = Priority().key
        assert key(request(1, priority=-1, arrival=2.0)) < key(request(0, priority=0, arrival=1.0))
        assert key(request(1, priority=0, arrival=1.0)) < key(request(0, priority=0, arrival=2.0))


class TestWaitingQueue:
    def test_order_and_ties(self) -> None:
        queue = WaitingQueue(Priority())
        requests = [request(0, 1), request(1, 0), request(2, 1), request(3, 0)]
        for r in requests:
            queue.push(r)
        assert queue.peek() is requests[1]
        assert [queue.pop().order for _ in range(4)] == [1, 3, 0, 2]
        assert queue.peek() is None
        with pytest.raises(IndexError):
            queue.pop()

    def test_memory_follows_the_living(self) -> None:
        queue = WaitingQueue(FCFS())
        first = request(0)
        queue.push(first)
        for i in range(1, 5000):
            gone = request(i)
            queue.push(gone)
            gone.status = RequestStatus.FINISHED
            queue.discard()
            assert len(queue) == 1
            assert len(queue._heap) < 100
        assert queue.pop() is first

    @given(st.lists(st.tuples(st.sampled_from(["push", "pop", "drop"]), st.integers(-2, 2), st.integers(0, 50))))
    @settings(deadline=None, max_examples=100)
    def test_against_a_sorted_list(self, operations: list[tuple[str, int, int]]) -> None:
        queue, model = WaitingQueue(Priority()), []
        for order, (operation, priority, index) in enumerate(operations):
            if operation == "push":
                model.append(request(order, priority))
                queue.push(model[-1])
            elif operation == "pop" and model:
                first = min(model, key=lambda r: (r.priority, r.order))
                assert queue.pop() is first
                first.status = RequestStatus.RUNNING
                model.remove(first)
            elif operation == "drop" and model:
                dropped = model.pop(index % len(model))
                dropped.status = RequestStatus.FINISHED
                queue.discard()
            assert len(queue) == len(model)
            assert queue.peek() is min(model, key=lambda r: (r.priority, r.order), default=None)
