"""A thread beside the event loop in which the work of several requests takes turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
TURN_SECONDS = 0.005


class Lane:
    """One thread, so however many requests come they keep no more than one core busy.

    Work is an iterator, each item of which is a small piece of it. After TURN_SECONDS it goes to the end of the line:
    what waits here waits for one turn of every other, however much the others bring.
    """

    def __init__(self, name: str):
        self._thread = ThreadPoolExecutor(1, name)

    async def collect(self, items: Iterator[T]) -> list[T]:
        """All items. Raises what the iterator raises, as soon as it does; when cancelled, no turn begins any more."""
        loop = asyncio.get_running_loop()
        found: list[T] = []
        while await loop.run_in_executor(self._thread, _take_turn, items, found):
            pass
        return found

    def close(self) -> None:
        """End the thread after the turn that runs; whatever waits is cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _take_turn(items: Iterator[T], found: list[T]) -> bool:
    """Whether there may be more."""
    end = time.monotonic() + TURN_SECONDS
    for item in items:
        found.append(item)
        if time.monotonic() >= end:
            return True
    return False
