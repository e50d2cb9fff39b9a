"""A lane: work takes turns, ends with its first error, and ends with whoever waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from mini_infer.engine import lane as lane_module
from mini_infer.engine.lane import Lane


@pytest.fixture
async def lane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lane]:
    """Every item is a turn."""
    monkeypatch.setattr(lane_module, "TURN_SECONDS", 0.0)
    lane = Lane("test")
    yield lane
    lane.close()


async def test_everything_in_order_off_the_loop(lane: Lane) -> None:
    threads: set[int] = set()

    def work() -> Iterator[int]:
        for i in range(100):
            threads.add(threading.get_ident())
            yield i

    assert await lane.collect(work()) == list(range(100))
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert await lane.collect(iter(())) == []


@pytest.mark.parametrize("seconds, turns", [(0.0, 100), (60.0, 1)])
def test_a_turn_is_over_when_its_time_is(monkeypatch: pytest.MonkeyPatch, seconds: float, turns: int) -> None:
    monkeypatch.setattr(lane_module, "TURN_SECONDS", seconds)
    found: list[int] = []
    items, count = iter(range(100)), 0
    while len(found) < 100:
        lane_module._take_turn(items, found)
        count += 1
    assert count == turns and found == list(range(100)) and not lane_module._take_turn(items, found)


async def test_a_little_does_not_wait_for_a_lot(lane: Lane) -> None:
    seen: list[str] = []

    def work(name: str, count: int) -> Iterator[None]:
        for _ in range(count):
            yield seen.append(name)

    await asyncio.gather(lane.collect(work("a", 1000)), lane.collect(work("b", 3)), lane.collect(work("c", 2)))
    assert seen[:8] == ["a", "b", "c", "a", "b", "c", "a", "b"] and len(seen) == 1005


async def test_an_error_is_the_end(lane: Lane) -> None:
    seen: list[int] = []

    def work() -> Iterator[None]:
        for i in range(100):
            seen.append(i)
            if i == 3:
                raise ValueError("the fourth")
            yield

    with pytest.raises(ValueError, match="fourth"):
        await lane.collect(work())
    assert seen == [0, 1, 2, 3]
    assert await lane.collect(iter([1, 2])) == [1, 2]


async def test_a_cancelled_one_has_no_more_turns(lane: Lane) -> None:
    seen: list[int] = []
    second = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> Iterator[None]:
        for i in range(1_000_000):
            seen.append(i)
            if i == 2:
                loop.call_soon_threadsafe(second.set)
            yield

    task = asyncio.ensure_future(lane.collect(work()))
    await second.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert await lane.collect(iter([1])) == [1]  # the turn that ran is over
    count = len(seen)
    assert await lane.collect(iter(range(50))) == list(range(50))
    assert len(seen) == count < 1_000_000
