"""Clients of all kinds at once against a real server, and whether it is as it was before them.

Some ask for what has a known answer, streamed or whole, on connections of their own, one after the other on one, or all
at once on one. Others leave at any moment, read a few bytes at a time, send what is nearly a request, what is none, or
what is not even HTTP. The bundled model serves, with a pool of blocks that is too small for so many, so that sequences
are preempted, and a queue that is often full.

The answers that are known are made one by one before: they must be the same in the storm, and after it. A first storm
is not counted: whatever is made once is there after it.

Run it with `python -m benchmarks.storm` (`--help` for the knobs).
"""

from __future__ import annotations

import argparse
import base64
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.abort_storm import MemoryWatch, settled
from benchmarks.common import RESULTS, Figure, write_result
from benchmarks.served import Server, conditions
from benchmarks.storm_clients import Report, one_by_one, storm
from benchmarks.storm_requests import MAX_BODY_SIZE, Ask, known_asks
from benchmarks.wire import in_own_process

# Few tokens a step, so that what the matrix library keeps for each number of rows is soon all there.
OPTIONS = ("--dtype", "float32", "--max-model-len", "1024", "--num-kv-blocks", "72", "--max-num-seqs", "16",
           "--max-queue", "24", "--max-num-batched-tokens", "64", "--threads", "1", "--max-body-size",
           str(MAX_BODY_SIZE))
WARM_UP_SECONDS = 30.0  # or a fifth of the storm, where that is less
SETTLE_SECONDS = 30.0
POINTS = 20  # of the curve of memory that is told
FREE, CACHED = 0, 1  # of protocol.py::EngineView.cells
MAX_SLOPE = 1.0  # MB in ten minutes


def blocks(server: Server) -> dict[str, int]:
    """The KV blocks by state, counted one by one where the engine shows them; `total` is what it was given."""
    view = server.look()
    if view["blocks_per_cell"] != 1:
        raise RuntimeError("too many blocks to be shown one by one")
    cells = Counter(cell for cell, in struct.iter_unpack("<H", base64.b64decode(view["cells"])))
    free, cached = cells.pop(FREE, 0), cells.pop(CACHED, 0)
    return {"total": view["stats"]["total_blocks"], "free": free, "cached": cached, "used": cells.total()}


def requests(server: Server) -> dict[str, int]:
    """How many were received, and what became of them."""
    ended = {name: int(value) for name, value in server.metric_by("requests_ended_total", "outcome").items()}
    return {"received": int(server.metrics()["requests_received_total"]), **ended}


def run(asks: Sequence[Ask], seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """One storm, told: everything of the JSON file but its figures and settings."""
    with Server(*OPTIONS) as server:
        known = list(zip(asks, one_by_one(server.port, asks)))
        in_own_process(storm, server.port, known, clients, min(WARM_UP_SECONDS, seconds / 5), seed)
        before = settled(server, {}, 3.0)
        watch = MemoryWatch(server)
        watch.start()
        report: Report = in_own_process(storm, server.port, known, clients, seconds, seed + 1)
        watch.finish()
        after = settled(server, before, SETTLE_SECONDS)
        left, counted, metrics = blocks(server), requests(server), server.metrics()
        log = list(server.log)
        again = one_by_one(server.port, asks)
    some = watch.samples[:: max(1, len(watch.samples) // POINTS)]
    return {
        "clients": vars(report), "requests": counted, "before": before, "after": after, "blocks": left,
        "changed_after": sum(one != expected for one, (_, expected) in zip(again, known)),
        "preemptions": int(metrics["num_preemptions_total"]), "log": log,
        "memory": {name: {"mb_per_10_minutes": round(10 * watch.slope(column), 2),
                          "mb": [round(sample[column], 1) for sample in some]}
                   for column, name in enumerate(("front", "engine"), 1)}}


def figures_of(record: dict[str, Any]) -> list[Figure]:
    """What must be so after a storm."""
    def none(name: str, value: float) -> Figure:
        return Figure(name, value, "", 0, at_least=False)

    before, after, left, faults = record["before"], record["after"], record["blocks"], \
        record["clients"]["faults_by_kind"]
    received, *ended = record["requests"].values()
    wrong_end = sum(faults.get(kind, 0) for kind in ("broken", "cut off", "stream failed"))
    return [
        Figure("answers that were compared with those one by one", record["clients"]["compared"], "", 1),
        none("of these, different", faults.get("different", 0) + record["changed_after"]),
        Figure("streams read to their end", record["clients"]["streams"], "", 1),
        none("streams and answers that did not end once, in form", wrong_end),
        none("other faults that clients saw", sum(faults.values()) - wrong_end - faults.get("different", 0)),
        none("requests running or waiting", after["running"] + after["waiting"]),
        none("KV blocks used", left["used"]),
        none("KV blocks neither free, cached nor used", left["total"] - left["free"] - left["cached"] - left["used"]),
        none("requests received, less those that ended in any way", abs(received - sum(ended))),
        none("requests that the server failed", record["requests"]["failed"]),
        none("tasks of the front, more than before", after["tasks"] - before["tasks"]),
        none("file descriptors, more than before",
             after["front_fds"] + after["engine_fds"] - before["front_fds"] - before["engine_fds"]),
        none("lines in the log", len(record["log"])),
        *(Figure(f"memory of the {name} in ten minutes, second half", memory["mb_per_10_minutes"], " MB", MAX_SLOPE,
                 at_least=False) for name, memory in record["memory"].items())]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=24, help="at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a look, of some seconds, at some of the known answers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    asks = known_asks()
    if args.quick:
        args.minutes, asks = 0.06, asks[::4]
    settings = {**vars(args), "out": None, "options": OPTIONS, **conditions()}
    record = run(asks, 60 * args.minutes, args.clients, args.seed)
    figures = figures_of(record)
    for name in ("requests", "memory", "preemptions"):
        print(f"{name}: {record[name]}")
    for name in ("manners", "statuses", "faults_by_kind"):
        print(f"{name}: {dict(record['clients'][name])}")
    for line in (*record["clients"]["faults"], *record["log"]):
        print(line.rstrip())
    for figure in figures:
        print(figure)
    figures_record = [figure.record() for figure in figures]
    print(f"written to {write_result('storm', {'settings': settings, **record, 'figures': figures_record}, args.out)}")


if __name__ == "__main__":
    main()
