"""What everything around the model costs: streamed tokens a second, CPU time a token, and latency added to a token.

A dry-run server (the real front, process boundary, scheduler and loop over a simulated GPU) is read by a client in a
process of its own; client, front and engine share this machine's cores, and each one's CPU time is told.

- *free*: steps cost nothing, 256 connections. The engine is ahead of the front, which then merges steps.
- *paced*: a GPU whose steps bring 256 tokens at a rate a little above the target: does each token get its own event?
- *latency*: 64 connections; a token's latency is from the end of its step on the simulated device to the client's
  process having its bytes.

Run it with `python -m benchmarks.front_cost` (`--help` for the knobs) on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import RESULTS, Figure, write_result
from benchmarks.served import SEVEN_B, DryServer, conditions, write_model
from benchmarks.wire import Load, in_own_process, stream_load
from mini_infer.config import BUNDLED_MODEL_DIR

TARGET = 20_000  # tokens a second
LATENCY_MS = 5.0
PACED_LAYERS = 48  # of a 7B model's shape on an H100: 256 tokens in 9.6 ms


def bodies(connections: int, max_tokens: int, spread: int = 0) -> list[dict[str, Any]]:
    """A request for each connection, with lengths that differ by `spread`, so that not all of them end together."""
    return [{"prompt": [10 + i, 20, 30, 40], "max_tokens": max_tokens + spread * i, "ignore_eos": True, "stream": True,
             "stream_options": {"include_usage": True}} for i in range(connections)]


def throughput(name: str, model: Path, gpu: str, connections: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    asked = bodies(connections, max_tokens)
    with DryServer(model, "--dry-gpu", gpu) as server:
        in_own_process(stream_load, server.port, asked, 1)
        steps, (front, engine) = server.metrics()["engine_steps_total"], server.cpu_seconds()
        load = in_own_process(stream_load, server.port, asked, rounds)
        after = server.cpu_seconds()
        steps = server.metrics()["engine_steps_total"] - steps
    return {"case": name, "connections": connections, "tokens": load.tokens, "seconds": round(load.seconds, 3),
            "tokens_per_second": round(load.tokens / load.seconds),
            "events_per_token": round(load.events / load.tokens, 3),
            "tokens_per_step": round(load.tokens / steps, 1),
            "cpu_us_per_token": {"front": round(1e6 * (after[0] - front) / load.tokens, 1),
                                 "engine": round(1e6 * (after[1] - engine) / load.tokens, 1),
                                 "client": round(1e6 * load.cpu_seconds / load.tokens, 1)}}


def latency(model: Path, gpu: str, connections: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".steps") as file:
        os.environ["MINI_INFER_STEP_TIMES"] = file.name
        with DryServer(model, "--dry-gpu", gpu, "--plugin", "benchmarks.step_times") as server:
            in_own_process(stream_load, server.port, bodies(connections, 16), 1)
            load = in_own_process(stream_load, server.port, bodies(connections, max_tokens, spread=3), rounds, True)
        data = Path(file.name).read_bytes()
    ends = [end for (end,) in struct.iter_unpack("<d", data)]
    added = sorted(added_latencies(ends, load))
    gaps = [later - earlier for earlier, later in pairwise(ends) if later - earlier < 1]
    at = {name: round(1e3 * added[min(len(added) - 1, int(share * len(added)))], 3)
          for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))}
    return {"case": "latency", "connections": connections, "tokens": len(added),
            "step_ms": round(1e3 * statistics.median(gaps), 2),
            "tokens_per_second": round(load.tokens / load.seconds), "added_ms": at}


def added_latencies(ends: Sequence[float], load: Load) -> list[float]:
    """Seconds from the end of its step to its arrival, for each token.

    A request that runs gets a token from every step, so one number says which step its first one is from. No token
    comes before its step has ended: the number is the least that the arrivals allow, and exact as soon as one token of
    the request arrived before the next step's end.
    """
    added = []
    for requests in load.arrivals:
        for arrivals in requests:
            first = min(bisect_right(ends, arrival) - 1 - i for i, arrival in enumerate(arrivals))
            added += [arrival - ends[first + i] for i, arrival in enumerate(arrivals)]
    return added


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4, help="requests of each connection")
    parser.add_argument("--latency-connections", type=int, default=64)
    parser.add_argument("--latency-gpu", default="A100", help="whose steps with a 7B model set the pace")
    parser.add_argument("--quick", action="store_true", help="a look, of a few seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.quick:
        args.max_tokens, args.rounds = 64, 1
    settings = {**vars(args), "out": None, **conditions()}
    with tempfile.TemporaryDirectory() as directory, tqdm(total=3, desc="front_cost", dynamic_ncols=True) as bar:
        seven_b = write_model(Path(directory) / "7b", **SEVEN_B)
        paced = write_model(Path(directory) / "paced", **SEVEN_B | {"num_hidden_layers": PACED_LAYERS})
        rows = []
        for case, model, gpu in (("free", BUNDLED_MODEL_DIR, "free"), ("paced", paced, "H100")):
            bar.set_postfix_str(case)
            rows.append(throughput(case, model, gpu, args.connections, args.max_tokens, args.rounds))
            bar.update()
        bar.set_postfix_str("latency")
        rows.append(latency(seven_b, args.latency_gpu, args.latency_connections, args.max_tokens, args.rounds))
        bar.update()
    free, paced_row, late = rows
    figures = [
        Figure(f"streamed tokens, steps free, {args.connections} connections", free["tokens_per_second"], "/s", TARGET),
        Figure(f"streamed tokens, paced, {args.connections} connections", paced_row["tokens_per_second"], "/s", TARGET),
        Figure(f"latency added to a token, p99, {args.latency_connections} connections", late["added_ms"]["p99"], " ms",
               LATENCY_MS, at_least=False),
    ]
    for row in rows:
        print(row)
    for figure in figures:
        print(figure)
    path = write_result("front_cost", {"settings": settings, "rows": rows,
                                       "figures": [figure.record() for figure in figures]}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
