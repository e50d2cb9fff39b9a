"""What a watcher sees of the engine: that it is true, that it adds up, and that nothing is done for nobody."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_infer.config import SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.request import MAX_SPANS, Request
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine import streams
from mini_infer.engine.history import CAPACITY, Delivery, History
from mini_infer.engine.loop import EngineLoop
from mini_infer.engine.sim import SimExecutor, VirtualClock
from mini_infer.engine.streams import OutputStream
from mini_infer.engine.view import FIRST_OWNER, MAX_CELLS, MAX_STEPS, MAX_WAITING, StepTrace, look
from mini_infer.protocol import AddRequest, EngineView, SamplingParams, Span, StepOutputs, Timeline, WatchEngine
from mini_infer.text.output import CompletionDelta
from tests.core.shadow import Engine

ipc = pytest.importorskip("mini_infer.engine.ipc", exc_type=ImportError)
AFTER = {"queued": {"prefill", "ended"}, "prefill": {"prefill", "decode", "preempted", "ended"},
         "decode": {"preempted", "ended"}, "preempted": {"prefill", "ended"}}


def ticking() -> Callable[[], float]:
    """A clock that goes on by one with each look at it."""
    ticks = count(1)
    return lambda: float(next(ticks))


def config(**changes: object) -> SchedulerConfig:
    fields = {"max_num_seqs": 4, "max_num_batched_tokens": 8, "max_model_len": 32, "block_size": 4, "num_blocks": 12,
              "watermark": 0.0, **changes}
    return SchedulerConfig(**fields)  # type: ignore[arg-type]


def item(request_id: int, prompt_len: int, max_tokens: int, key: int = 0) -> AddRequest:
    return AddRequest(request_id, [key] * prompt_len, SamplingParams(max_tokens=max_tokens), arrival_time=0.5)


def cells_of(view: EngineView) -> list[int]:
    return list(struct.unpack(f"<{len(view.cells) // 2}H", view.cells))


events = st.lists(st.one_of(
    st.tuples(st.just("add"), st.integers(1, 20), st.integers(1, 10), st.integers(0, 2)),
    st.tuples(st.just("abort"), st.integers(0, 20), st.just(0), st.just(0)),
    st.tuples(st.just("fail"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0))), max_size=40)


class Run:
    """The events of an example on a shadow device, with the trace that a watcher would have."""

    def __init__(self, depth: int, num_blocks: int):
        self.engine = Engine(config(num_blocks=num_blocks), depth)
        self.scheduler = self.engine.scheduler
        self.scheduler._clock = ticking()
        self.trace = StepTrace(self.scheduler.now)
        self.items: dict[int, AddRequest] = {}
        self.timelines: list[Timeline] = []

    def do(self, kind: str, a: int, b: int, key: int) -> None:
        if kind == "add":
            self.items[len(self.items)] = item(len(self.items), a, b, key)
            self.engine.add(self.items[len(self.items) - 1])
        elif kind == "abort":
            self.engine.collect(self.scheduler.abort([a]))
        elif self.scheduler.has_work() or self.engine.in_flight:
            self.step(fail=kind == "fail")
        self.timelines += self.scheduler.take_timelines()

    def step(self, fail: bool = False) -> None:
        def change(plan: StepPlan, result: StepResult) -> None:
            self.trace.finish(plan)
            if fail:
                result.failed[0] = "made to"

        while len(self.engine.in_flight) < self.engine.depth and (plan := self.engine.submit()) is not None:
            self.trace.submit(plan)
        if self.engine.in_flight:
            self.engine.update(change)

    def finish(self) -> None:
        while self.scheduler.has_work() or self.engine.in_flight:
            self.step()
        self.timelines += self.scheduler.take_timelines()


@given(events=events, depth=st.integers(1, 3), num_blocks=st.sampled_from([8, 12, 40]))
@settings(max_examples=60, deadline=None)
def test_every_look_adds_up(events: list[tuple[str, int, int, int]], depth: int, num_blocks: int) -> None:
    run = Run(depth, num_blocks)
    for event in events:
        run.do(*event)
        view = look(run.scheduler, run.trace)
        [view] = ipc.FrameDecoder().feed(ipc.encode(view))  # as it comes to the front
        assert isinstance(view, EngineView)
        stats, cells = view.stats, Counter(cells_of(view))
        assert stats.free_blocks + stats.cached_blocks + stats.used_blocks == stats.total_blocks == num_blocks
        assert view.blocks_per_cell == 1 and cells.total() == num_blocks
        assert (cells[0], cells[1]) == (stats.free_blocks, stats.cached_blocks)
        assert sum(cells[code] for code in cells if code >= 2) == stats.used_blocks
        assert len(view.requests) == stats.running + min(stats.waiting, MAX_WAITING)
        assert view.owners == [(request.request_id, request.num_blocks) for request in view.requests[: stats.running]]
        assert all(cells[FIRST_OWNER + i] <= num_blocks for i, (_, num_blocks) in enumerate(view.owners))
        for i, request in enumerate(view.requests):
            assert (request.num_blocks > 0) == (request.phase in ("prefill", "decode")) == (i < stats.running)
            assert request.num_blocks * 4 >= request.computed_tokens
        for step in view.steps:
            assert len(set(step.request_ids)) == step.num_decodes + len(step.chunks) > 0
            assert all(n > 0 for n in step.chunks) and step.num_decodes + sum(step.chunks) <= 8
            assert step.seconds > 0


@given(events=events, depth=st.integers(1, 3), num_blocks=st.sampled_from([8, 12, 40]))
@settings(max_examples=60, deadline=None)
def test_a_timeline_has_no_gaps_and_says_what_was_computed(events: list[tuple[str, int, int, int]], depth: int,
                                                          num_blocks: int) -> None:
    run = Run(depth, num_blocks)
    for event in events:
        run.do(*event)
    run.finish()
    assert {timeline.request_id for timeline in run.timelines} == set(run.items)
    for timeline in run.timelines:
        asked, last = run.items[timeline.request_id], run.engine.last(timeline.request_id)
        phases = [span.phase for span in timeline.spans]
        assert phases[0] == "queued"
        assert all(after in AFTER[phase] for phase, after in zip(phases, [*phases[1:], "ended"]))
        times = [timeline.arrival, *(span.end for span in timeline.spans)]
        assert times == sorted(times) and timeline.arrival == asked.arrival_time
        assert sum(b - a for a, b in pairwise(times)) == pytest.approx(times[-1] - timeline.arrival)
        assert timeline.reason == last.finish_reason
        tokens = Counter(dict.fromkeys(AFTER, 0))
        for span in timeline.spans:
            tokens[span.phase] += span.tokens
        assert tokens["queued"] == tokens["preempted"] == 0
        assert tokens["decode"] == timeline.output_tokens == len(run.engine.tokens(timeline.request_id))
        assert phases.count("preempted") == timeline.preemptions
        if "decode" in phases and not timeline.preemptions:
            missing = len(asked.prompt_token_ids) - timeline.cached_tokens - tokens["prefill"]
            assert missing in (0, 1)  # a last prompt token left over goes with the decode rows


def test_a_life_of_endless_changes_is_remembered_in_bounds() -> None:
    request = Request.create(item(1, 4, 4), 0, 0, 0.0, 32, ())
    for now in range(1, 3 * MAX_SPANS):
        request.enter("prefill" if now % 2 else "preempted", float(now), 1)
    spans = request.timeline("stop").spans
    assert len(spans) == MAX_SPANS and spans[-1].end == 3 * MAX_SPANS - 1
    assert sum(span.tokens for span in spans) == 3 * MAX_SPANS - 1


def test_a_large_pool_is_shown_in_a_bounded_number_of_cells() -> None:
    scheduler = Scheduler(config(num_blocks=3 * MAX_CELLS + 5), ticking())
    view = look(scheduler, StepTrace(scheduler.now))
    assert view.blocks_per_cell == 4 and len(cells_of(view)) == -(-(3 * MAX_CELLS + 5) // 4) <= MAX_CELLS


class TestTrace:
    def engine(self, depth: int) -> tuple[EngineLoop, VirtualClock]:
        clock = VirtualClock()

        class Slow(SimExecutor):
            """A step takes a second."""

            def submit(self, plan: StepPlan):  # type: ignore[no-untyped-def]
                pending = super().submit(plan)
                self._busy_until = pending.ends_at = pending.ends_at + 1.0
                return pending

        scheduler = Scheduler(config(max_model_len=64, num_blocks=64), clock.now)
        return EngineLoop(scheduler, Slow([7], clock=clock), depth), clock

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_steps_are_seen_while_somebody_watches(self, depth: int) -> None:
        loop, _ = self.engine(depth)
        loop.add(AddRequest(1, [1] * 12, SamplingParams(max_tokens=40), arrival_time=0.0))
        loop.step()
        assert loop._trace is None
        assert loop.look().steps == []  # the first look is what starts it
        for _ in range(3):
            loop.step()
        steps = loop.look().steps
        assert len(steps) == 4 - depth  # what was under way before is not seen
        assert all(step.seconds == pytest.approx(1.0) and step.request_ids == [1] for step in steps)
        for _ in range(MAX_STEPS + 5):
            loop.step()
        steps = loop.look().steps
        assert len(steps) == MAX_STEPS and steps[-1].step_id - steps[0].step_id == MAX_STEPS - 1
        for _ in range(5):
            loop.step()
        later = loop.look().steps
        assert len(later) == 6 - depth  # nor is what was under way when there was no room
        assert [step.seconds for step in [*steps, *later]] == pytest.approx([1.0] * (MAX_STEPS + len(later)))
        loop.look_away()
        loop.step()
        assert loop._trace is None and loop.look().steps == []

    def test_a_step_that_brings_prompt_and_decode_rows(self) -> None:
        loop, _ = self.engine(1)
        loop.look()
        loop.add(AddRequest(1, [1] * 4, SamplingParams(max_tokens=8)))
        loop.step()
        loop.add(AddRequest(2, [2] * 20, SamplingParams(max_tokens=8)))
        loop.step()
        first, second = loop.look().steps
        assert (first.num_decodes, first.request_ids, first.chunks) == (0, [1], [4])
        assert (second.num_decodes, second.request_ids, second.chunks) == (1, [1, 2], [7])


def timeline(request_id: int) -> Timeline:
    return Timeline(request_id, 1.0, [Span("queued", 2.0, 0)], 5, 0, 0, 0, "abort")


class TestHistory:
    def test_both_sides_meet_in_either_order(self) -> None:
        history = History()
        history.add(timeline(1))
        history.deliver(2, Delivery("stop", 3.0))
        first = history.last_change
        assert [ended.timeline.request_id for ended in history.since(0)] == [1] and history.since(first) == []
        history.add(timeline(2))
        history.deliver(1, Delivery("abort", 4.0))
        assert [(ended.timeline.request_id, ended.delivery and ended.delivery.reason)
                for ended in history.since(first)] == [(1, "abort"), (2, "stop")]

    def test_it_is_bounded_whoever_never_tells(self) -> None:
        history = History()
        for i in range(3 * CAPACITY):
            history.deliver(-i, Delivery("error", 1.0))
            history.add(timeline(i + 1))
        assert len(history) == len(history.since(0)) == CAPACITY and len(history._deliveries) <= CAPACITY

    def test_messages_pass_the_socket(self) -> None:
        step = StepOutputs(ended=[timeline(7)])
        messages = ipc.FrameDecoder().feed(ipc.encode(step) + ipc.encode(WatchEngine(True)))
        assert messages == [step, WatchEngine(True)]


async def test_a_stream_knows_when_its_reader_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(streams.time, "monotonic", lambda: now)
    stream = OutputStream(1, lambda stream: None)
    stream.request_ids.append(5)
    stream.put(5, CompletionDelta(0, "a", [1]))
    await anext(stream)
    now = 103.0  # busy with "a" for three seconds
    stream.put(5, CompletionDelta(0, "b", [2], finish_reason="stop"))
    await anext(stream)
    now = 103.01
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    now = 200.0  # what happens after the end is nobody's wait
    stream.close()
    assert stream.deliveries == [(5, Delivery("stop", 103.01, [(100.0, 103.0)]))]
