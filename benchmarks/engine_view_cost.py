"""What watching the engine costs: in processor time for each token, and in throughput.

A look costs so little that a machine which does other things too hides it: side by side, a load that is watched and
one that is not differ by less than the noise of such a comparison. So the load is watched with a dose: by a feed that
looks many times as often as the page's does. One long load runs in slices, in turn unwatched, watched as the page
does, and watched with the dose; the cost of the dose is the median over the rounds of what a slice with the dose costs
more than the unwatched one of its round. How many times as much the dose is, is counted in the same slices, once by
looks per second and once by the seconds per second that looks took the engine by its own clock (a look after a long
pause has more steps to tell of); the smaller number counts. The cost of the dose over this number, and its standard
error over the same, is the cost of a watcher: everything that a look entails is in it, on either side of the process
boundary, the caches that it empties included.

What does not grow with the looks must not be divided away. That steps are kept for the next look is in the looks' time
by the engine's clock. To tell of the sequences that ended is timed apart and added in full.

Beside this stands what can be accounted for: the time that looks take the engine by its own clock, and the time to
pack, unpack and write them and the sequences that ended, over the time that passed. What is timed apart is timed with
empty caches, as if nothing else that ran in between used the same code: a high estimate.

Once with the bundled model, once with the simulated executor at zero cost, where what is left is the scheduler, the
process boundary and the front. Run it with `python -m benchmarks.engine_view_cost` (`--help` for the knobs).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, spread, write_result
from mini_infer.config import BUNDLED_MODEL_DIR, EngineConfig
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.history import History
from mini_infer.engine.ipc import FrameDecoder, encode
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import EngineView, SamplingParams
from mini_infer.server.feed import Feed, frame
from mini_infer.server.metrics import ServerMetrics
from mini_infer.server.sse import named_event

LIMIT_PERCENT = 1.0
DOSE_INTERVAL = 0.001  # seconds between two looks of the dose, at least; there is one in a step at most
DOSE_PAUSE_PER_COST = 5
SLICE_SECONDS = 1.5
SETTLE_SECONDS = 0.5  # before a slice, so that what it takes to begin or to end watching is not in it
CACHE_BYTES = 64 * 2**20  # reading so many leaves nothing else in the caches, or little


def processor_seconds(pid: int) -> float:
    """What all threads of a process have run so far, in nanoseconds as the kernel counts them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Watcher:
    """Reads a feed as the page does, and keeps count of what comes and of what it cost the engine by its own clock."""

    def __init__(self, feed: Feed):
        self._feed = feed
        self._task: asyncio.Task[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.looks, self.num_bytes, self.cost, self.ended = 0, 0, 0.0, 0

    async def __aenter__(self) -> Watcher:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *raised: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        events = self._feed.events()
        try:
            async for data in events:
                self.num_bytes += len(data)
                if data.startswith(b"event: view"):
                    self.looks += 1
                    self.cost += float(data.partition(b'"cost":')[2].partition(b",")[0])
                    self.ended += data.count(b'"change":')
        finally:
            await events.aclose()  # type: ignore[attr-defined]


class Load:
    """Keeps `num_requests` streams going; each that ends is followed by another. `tokens` counts what they brought.

    Lengths are drawn around `output_len`, so that the streams do not end and begin together.
    """

    def __init__(self, llm: AsyncLLM, num_requests: int, output_len: int):
        self._llm = llm
        self._output_len = output_len
        self.tokens = 0
        self._tasks = [asyncio.create_task(self._stream(i)) for i in range(num_requests)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stream(self, i: int) -> None:
        draw = Random(i)
        while True:
            length = draw.randint(self._output_len // 2, 3 * self._output_len // 2)
            params = SamplingParams(max_tokens=length, ignore_eos=True, temperature=0)
            async for delta in self._llm.generate([10 + i] + [7] * 63, params):
                self.tokens += len(delta.token_ids)


async def measure(sim: SimConfig | None, num_requests: int, output_len: int, rounds: int, desc: str) -> dict[str, Any]:
    """One long load in `rounds` rounds of three slices: unwatched, watched as the page does, watched with the dose."""
    async with AsyncLLM(EngineConfig(max_num_seqs=num_requests), sim) as llm:
        metrics = ServerMetrics()
        llm.observe(metrics)
        dosed = Feed(llm, metrics, DOSE_INTERVAL, DOSE_PAUSE_PER_COST)
        feeds: dict[str, Feed | None] = {"unwatched": None, "watched": Feed(llm, metrics), "dosed": dosed}
        slices: dict[str, list[dict[str, float]]] = {side: [] for side in feeds}
        assert llm.engine_pid is not None
        pids = (os.getpid(), llm.engine_pid)
        load = Load(llm, num_requests, output_len)
        await asyncio.sleep(3.0)

        async def timed(watcher: Watcher | None = None) -> dict[str, float]:
            await asyncio.sleep(SETTLE_SECONDS)
            if watcher is not None:
                watcher.reset()
            tokens, before, begin = load.tokens, [processor_seconds(pid) for pid in pids], time.perf_counter()
            await asyncio.sleep(SLICE_SECONDS)
            seconds = time.perf_counter() - begin
            spent = sum(processor_seconds(pid) - start for pid, start in zip(pids, before))
            tokens = load.tokens - tokens
            found = {"seconds": seconds, "tokens_per_s": tokens / seconds, "us_per_token": 1e6 * spent / tokens}
            if watcher is not None:
                found |= {"looks": watcher.looks, "bytes": watcher.num_bytes, "cost": watcher.cost,
                          "ended": watcher.ended}
            return found

        order = list(feeds)
        for _ in tqdm(range(rounds), desc=desc, dynamic_ncols=True):
            for side in order:
                feed = feeds[side]
                if feed is None:
                    slices[side].append(await timed())
                    continue
                async with Watcher(feed) as watcher:
                    slices[side].append(await timed(watcher))
            order = order[1:] + order[:1]  # each has each place in turn
        await llm.look()  # from here on steps are kept for the next
        await asyncio.sleep(0.3)
        view = await llm.look()
        await load.stop()
    looks, changes = (sum(each[name] for each in slices["watched"]) for name in ("looks", "ended"))
    return {"requests": num_requests, "output_len": output_len, "rounds": rounds,
            **summary(slices, handling_seconds(view), ended_seconds(llm.history, round(changes / looks)))}


def cold_seconds(work: Callable[[], object]) -> float:
    """What `work` takes when nothing of it is in the processor's caches."""
    other = bytearray(CACHE_BYTES)

    def once() -> float:
        other.count(1)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(50))


def handling_seconds(view: EngineView) -> float:
    """What a look costs besides being made: to pack and unpack it, and to write it as an event."""
    data = encode(view)
    return (cold_seconds(lambda: encode(view)) + cold_seconds(lambda: FrameDecoder().feed(data))
            + cold_seconds(lambda: frame(view, 0.1, 0.1)))


def ended_seconds(history: History, changes: int) -> float:
    """What it costs to find and to write the sequences that ended from one look to the next."""
    return cold_seconds(lambda: named_event("ended", history.since(history.last_change - changes)))


def summary(slices: dict[str, list[dict[str, float]]], handling: float, ended: float) -> dict[str, Any]:
    """`handling`: the seconds that a look takes besides being made; `ended`: those for the sequences that ended."""
    def rates(side: str) -> dict[str, float]:
        """Per second, over all slices of a side."""
        seconds = sum(each["seconds"] for each in slices[side])
        return {name: sum(each[name] for each in slices[side]) / seconds for name in slices[side][0]}

    watched, dosed = rates("watched"), rates("dosed")
    dose = min(dosed["looks"] / watched["looks"], dosed["cost"] / watched["cost"])
    apart = 100 * watched["looks"] * ended

    def paired(ratios: list[float], dose: float, apart: float) -> dict[str, float]:
        """Per cent, from what is 1 where watching costs nothing."""
        percent, error = statistics.median(ratios) - 1, 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5
        return {"percent": round(100 * percent / dose + apart, 3), "standard_error": round(100 * error / dose, 3)}

    def costs(side: str, dose: float, apart: float) -> dict[str, Any]:
        pairs = list(zip(slices[side], slices["unwatched"]))
        times = [one["us_per_token"] / other["us_per_token"] for one, other in pairs]
        rates = [other["tokens_per_s"] / one["tokens_per_s"] for one, other in pairs]
        return {"throughput": paired(rates, dose, apart), "processor time": paired(times, dose, apart)}

    return {
        **{side: {name: spread([each[name] for each in found], 2) for name in ("tokens_per_s", "us_per_token")}
           for side, found in slices.items()},
        "cost": costs("dosed", dose, apart),
        "cost_of_dose": costs("dosed", 1, 0),
        "cost_without_dose": costs("watched", 1, 0),
        "apart_percent": round(apart, 3),
        "accounted_percent": round(100 * (watched["cost"] + watched["looks"] * handling) + apart, 3),
        "dose": round(dose, 2),
        **{f"{side}_looks": {"per_s": round(rate["looks"], 2), "kb_per_s": round(rate["bytes"] / 1e3, 1),
                             "made_in_ms": round(1e3 * rate["cost"] / rate["looks"], 3)}
           for side, rate in (("watched", watched), ("dosed", dosed))},
        "handled_in_ms": round(1e3 * handling, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="slices of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    args = parser.parse_args()
    sides = {
        "bundled": asyncio.run(measure(None, 32, 512, args.rounds, "bundled model, 32 requests")),
        "simulated": asyncio.run(measure(SimConfig(gpu="free"), 128, 1024, args.rounds, "simulated, 128 requests")),
    }
    figures = []
    for name, side in sides.items():
        costs = {**{f"cost of a watcher, {kind}": found["percent"] for kind, found in side["cost"].items()},
                 "cost of a watcher, accounted": side["accounted_percent"]}
        figures += [Figure(f"{name}: {what}", percent, " %", LIMIT_PERCENT, at_least=False)
                    for what, percent in costs.items()]
        print(name, *describe(side), sep="\n  ")
    print(*figures, sep="\n")
    path = write_result("engine_view_cost", {"model": str(BUNDLED_MODEL_DIR.name), **sides,
                                             "figures": [figure.record() for figure in figures]}, args.out)
    print(f"written to {path}")


def describe(side: dict[str, Any]) -> list[str]:
    """What a measurement found, in lines."""
    rates = [f"{side[name]['tokens_per_s']['median']:,.0f} tokens/s {name}"
             for name in ("unwatched", "watched", "dosed")]
    looks = [f"{name}: {found['per_s']} looks/s, each made in {found['made_in_ms']} ms"
             for name in ("watched", "dosed") for found in [side[name + "_looks"]]]
    costs = [f"{words}: {' and '.join(_kinds(side[name]))}" for name, words in (
        ("cost", "cost"), ("cost_of_dose", "cost of the dose"), ("cost_without_dose", "without the dose"))]
    return [", ".join(rates), f"{'; '.join(looks)}; handled in {side['handled_in_ms']} ms",
            f"dose: {side['dose']} times; apart: {side['apart_percent']} %; accounted: {side['accounted_percent']} %",
            *costs]


def _kinds(costs: dict[str, dict[str, float]]) -> list[str]:
    return [f"{cost['percent']} ± {cost['standard_error']} % of {kind}" for kind, cost in costs.items()]


if __name__ == "__main__":
    main()
