"""The benchmark of the host's cost runs, and the cost does not grow with the queue."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common import write_result
from benchmarks.host_cost import measure


def test_cost_is_flat_in_the_queue() -> None:
    # The benchmark holds it to 10 %; this only has to tell flat from linear (64 times) on a busy machine.
    short, long = measure([(16, 64), (16, 4096)], steps=20, rounds=3)
    assert long["total_ms"] < 3 * short["total_ms"]


def test_result_file(tmp_path: Path) -> None:
    record = json.loads(write_result("probe", {"figure": 1}, tmp_path).read_text())
    assert record["name"] == "probe" and record["figure"] == 1
    assert set(record["machine"]) == {"cpu", "cores", "gpu", "python", "torch", "triton", "commit"}
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
