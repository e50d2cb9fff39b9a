"""Requests that come at once begin one by one."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from mini_infer.server.lifecycle import Turns


async def test_one_goes_on_in_each_pass_of_the_loop() -> None:
    turns, passes, went_on = Turns(), 0, []
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal passes
        passes += 1
        loop.call_soon(count)

    async def task(number: int) -> None:
        await turns.wait()
        went_on.append((number, passes))

    loop.call_soon(count)
    for _ in range(2):  # the second crowd finds things as the first one did
        tasks = [asyncio.create_task(task(number)) for number in range(8)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        numbers, passes_of = zip(*went_on)
        assert numbers == (0, 1, 2, 4, 5, 6, 7)
        assert all(later > earlier for earlier, later in pairwise(passes_of))
        went_on.clear()
        await asyncio.sleep(0.01)
    before = passes
    await turns.wait()
    assert passes == before  # nobody waits for nobody
