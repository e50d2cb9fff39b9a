"""Clients that leave, hundreds a second: whether the server is as it was before them.

Each client connects, sends a request and closes its connection, some with a reset: before all of its body is sent, at
once, or a little later, while it is queued, in its prompt or among its tokens; streaming or not, with one completion or
four. Afterwards no request runs or waits, no KV block is held, and file descriptors and tasks are what they were; the
memory of both processes is sampled meanwhile, and its slope over the second half is told.

Run it with `python -m benchmarks.abort_storm` (`--help` for the knobs).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, write_result
from benchmarks.served import SEVEN_B, DryServer, Server, conditions, write_model
from benchmarks.wire import in_own_process, request_bytes

MAX_STAY = 0.4  # seconds; a prompt's chunks and some twenty tokens
RESET = struct.pack("ii", 1, 0)  # linger for no time: the close is a reset


def storm(port: int, rate: float, seconds: float, seed: int) -> tuple[int, float]:
    """Connections that were made and left, and the seconds from the first to the last."""
    return uvloop.run(_storm(port, rate, seconds, random.Random(seed)))


async def _storm(port: int, rate: float, seconds: float, chance: random.Random) -> tuple[int, float]:
    loop = asyncio.get_running_loop()
    begin, made = loop.time(), 0
    clients: set[asyncio.Task[None]] = set()
    while (due := made / rate) < seconds:
        if (wait := begin + due - loop.time()) > 0:
            await asyncio.sleep(wait)
        client = asyncio.ensure_future(come_and_go(port, chance))
        clients.add(client)
        client.add_done_callback(clients.discard)
        made += 1
    took = loop.time() - begin
    await asyncio.gather(*clients)
    return made, took


async def come_and_go(port: int, chance: random.Random) -> None:
    """One client, which leaves before it has an answer."""
    request = request_bytes("/v1/completions", {
        "prompt": [chance.randrange(10, 3000) for _ in range(chance.choice((4, 100, 600)))], "max_tokens": 200,
        "ignore_eos": True, "n": chance.choice((1, 1, 4)), "stream": chance.random() < 0.7})
    manner = chance.random()
    with suppress(OSError):
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
        transport.write(request if manner > 0.1 else request[: chance.randrange(len(request))])
        await asyncio.sleep(0 if manner < 0.3 else chance.random() * MAX_STAY)
        if chance.random() < 0.5:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()
        else:
            transport.close()


class MemoryWatch(threading.Thread):
    """Samples (seconds, front's MB, engine's MB) until told to stop."""

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float, float]] = []
        self._server = server
        self._stopped = threading.Event()

    def run(self) -> None:
        begin = time.monotonic()
        while not self._stopped.wait(1.0):
            self.samples.append((time.monotonic() - begin, *self._server.memory_mb()))

    def finish(self) -> None:
        self._stopped.set()
        self.join()

    def slope(self, column: int) -> float:
        """MB per minute over the second half, by least squares."""
        half = self.samples[len(self.samples) // 2 :]
        times, values = [sample[0] for sample in half], [sample[column] for sample in half]
        mean_time, mean = sum(times) / len(times), sum(values) / len(values)
        spread = sum((moment - mean_time) ** 2 for moment in times)
        return 60 * sum((moment - mean_time) * (value - mean) for moment, value in zip(times, values)) / (spread or 1.0)


def state(server: Server) -> dict[str, float]:
    """What must be the same before and after. The request that asks is part of it."""
    metrics, (front_fds, engine_fds) = server.metrics(), server.num_fds()
    return {"running": metrics["num_requests_running"], "waiting": metrics["num_requests_waiting"],
            "used_blocks": metrics["kv_cache_usage_perc"], "tasks": metrics["front_tasks"], "front_fds": front_fds,
            "engine_fds": engine_fds}


def settled(server: Server, wanted: dict[str, float], seconds: float) -> dict[str, float]:
    """The state, as soon as it is what is wanted, or else when the time is over."""
    end = time.monotonic() + seconds
    while (found := state(server)) != wanted and time.monotonic() < end:
        time.sleep(0.2)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=500.0, help="disconnects a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gpu", default="A100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a look, of ten seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.quick:
        args.seconds = 5.0
    settings = {**vars(args), "out": None, **conditions()}
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory) / "7b", **SEVEN_B)
        with DryServer(model, "--dry-gpu", args.gpu, "--max-num-seqs", "64") as server, \
                tqdm(total=3, desc="abort_storm") as bar:
            in_own_process(storm, server.port, args.rate, 2.0, args.seed)  # whatever is made once is there now
            time.sleep(1.0)
            before, ended = state(server), server.metrics()
            bar.update()
            watch = MemoryWatch(server)
            watch.start()
            made, took = in_own_process(storm, server.port, args.rate, args.seconds, args.seed + 1)
            watch.finish()
            bar.update()
            after = settled(server, before, 20.0)
            metrics = server.metrics()
            bar.update()
    aborted = metrics["request_success_total"] - ended["request_success_total"]
    refused = metrics["requests_refused_total"] - ended["requests_refused_total"]
    leaked = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    slopes: dict[str, Any] = {name: round(watch.slope(i), 2) for i, name in enumerate(("front", "engine"), 1)}
    first, last = watch.samples[len(watch.samples) // 2], watch.samples[-1]
    figures = [Figure("disconnects a second", round(made / took, 1), "/s", 0.95 * args.rate),
               Figure("what is left of them: blocks, requests, tasks, descriptors", len(leaked), "", 0, at_least=False)]
    record = {"settings": settings, "disconnects": made, "seconds": round(took, 2), "sequences_ended": aborted,
              "requests_refused": refused, "before": before, "after": after, "leaked": leaked,
              "memory_slope_mb_per_minute": slopes,
              "memory_mb_second_half": {"front": [first[1], last[1]], "engine": [first[2], last[2]]},
              "figures": [figure.record() for figure in figures]}
    for name in ("disconnects", "sequences_ended", "requests_refused", "before", "after", "leaked",
                 "memory_slope_mb_per_minute", "memory_mb_second_half"):
        print(f"{name}: {record[name]}")
    for figure in figures:
        print(figure)
    print(f"written to {write_result('abort_storm', record, args.out)}")


if __name__ == "__main__":
    main()
