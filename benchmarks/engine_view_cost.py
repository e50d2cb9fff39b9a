"""What watching the engine costs, said in two ways.

Accounted: the time that looks take the engine, by its own clock, and the time to pack, unpack and write them, over the
time that passed. This is the figure. Paired, as a check that nothing is left out: one long load, watched for a
while and then not, many times; the processor time of both processes for each token, as the median over
pairs of neighbouring slices with its standard error. A machine that does other things too leaves that error above one
per cent. Once with the bundled model, once with the simulated executor at zero cost, where what is left is the
scheduler, the process boundary and the front. Run it with `python -m benchmarks.engine_view_cost` (`--help` for the
knobs).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, spread, write_result
from mini_infer.config import BUNDLED_MODEL_DIR, EngineConfig
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.ipc import FrameDecoder, encode
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import EngineView, SamplingParams
from mini_infer.server.feed import Feed, frame
from mini_infer.server.metrics import ServerMetrics

LIMIT_PERCENT = 1.0
SLICE_SECONDS = 1.5
SETTLE_SECONDS = 0.5  # before a slice, so that what it takes to begin or to end watching is not in it


def processor_seconds(pid: int) -> float:
    """What all threads of a process have run so far, in nanoseconds as the kernel counts them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Watcher:
    """Reads the feed as the page does, and keeps count of what it cost the engine by the engine's own clock."""

    def __init__(self, feed: Feed):
        self._feed = feed
        self._task: asyncio.Task[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.looks, self.num_bytes, self.cost = 0, 0, 0.0

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


async def measure(sim: SimConfig | None, num_requests: int, output_len: int, pairs: int, desc: str) -> dict[str, Any]:
    """One long load, of which one slice is watched and the next is not, `pairs` times."""
    slices: dict[str, list[dict[str, float]]] = {"unwatched": [], "watched": []}
    async with AsyncLLM(EngineConfig(max_num_seqs=num_requests), sim) as llm:
        metrics = ServerMetrics()
        llm.observe(metrics)
        feed = Feed(llm, metrics)
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
            front, engine = (processor_seconds(pid) - start for pid, start in zip(pids, before))
            tokens = load.tokens - tokens
            return {"tokens_per_s": tokens / seconds, "us_per_token": 1e6 * (front + engine) / tokens,
                    "seconds": seconds}

        for pair in tqdm(range(pairs), desc=desc, dynamic_ncols=True):
            for side in ("unwatched", "watched") if pair % 2 else ("watched", "unwatched"):
                if side == "unwatched":
                    slices[side].append(await timed())
                    continue
                async with Watcher(feed) as watcher:
                    seen = await timed(watcher)
                slices[side].append({**seen, "looks": watcher.looks, "bytes": watcher.num_bytes, "cost": watcher.cost})
        handling = handling_seconds(await llm.look())
        await load.stop()
    return {"requests": num_requests, "output_len": output_len, "pairs": pairs, **summary(slices, handling)}


def handling_seconds(view: EngineView) -> float:
    """What a look costs besides being made: to pack and unpack it, and to write it as an event."""
    def least(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, number=1, repeat=50))

    data = encode(view)
    return least(lambda: encode(view)) + least(lambda: FrameDecoder().feed(data)) + least(lambda: frame(view, 0.1, 0.1))


def summary(slices: dict[str, list[dict[str, float]]], handling: float) -> dict[str, Any]:
    """Medians over pairs of neighbouring slices, with the standard error of the cost."""
    def ratios(name: str) -> list[float]:
        return [watched[name] / unwatched[name] for watched, unwatched in zip(slices["watched"], slices["unwatched"])]

    costs = [100 * (ratio - 1) for ratio in ratios("us_per_token")]
    total = {name: sum(each[name] for each in slices["watched"]) for name in ("looks", "bytes", "cost", "seconds")}
    return {
        **{side: {name: spread([each[name] for each in found], 2) for name in ("tokens_per_s", "us_per_token")}
           for side, found in slices.items()},
        "accounted_percent": round(100 * (total["cost"] + total["looks"] * handling) / total["seconds"], 3),
        "paired_percent": round(statistics.median(costs), 2),
        "paired_standard_error_percent": round(1.25 * statistics.stdev(costs) / len(costs) ** 0.5, 2),
        "throughput_ratio": round(statistics.median(ratios("tokens_per_s")), 4),
        "ms_per_look": round(1e3 * (total["cost"] / total["looks"] + handling), 3),
        "looks_per_s": round(total["looks"] / total["seconds"], 2),
        "kb_per_s": round(total["bytes"] / total["seconds"] / 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30, help="slices of either kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    args = parser.parse_args()
    sides = {
        "bundled": asyncio.run(measure(None, 32, 512, args.pairs, "bundled model, 32 requests")),
        "simulated": asyncio.run(measure(SimConfig(gpu="free"), 128, 1024, args.pairs, "simulated, 128 requests")),
    }
    figures = [Figure(f"{name}: cost of a watcher", side["accounted_percent"], " %", LIMIT_PERCENT, at_least=False)
               for name, side in sides.items()]
    for name, side in sides.items():
        rates = [f"{side[each]['tokens_per_s']['median']:,.0f} tokens/s {each}" for each in ("unwatched", "watched")]
        print(f"{name}: {', '.join(rates)} (median of paired ratios {side['throughput_ratio']}); "
              f"{side['looks_per_s']} looks/s of {side['ms_per_look']} ms, {side['kb_per_s']} kB/s; paired cost "
              f"{side['paired_percent']} ± {side['paired_standard_error_percent']} % of processor time a token")
    print(*figures, sep="\n")
    path = write_result("engine_view_cost", {"model": str(BUNDLED_MODEL_DIR.name), **sides,
                                             "figures": [figure.record() for figure in figures]}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
