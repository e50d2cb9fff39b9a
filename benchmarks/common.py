"""Shared by the benchmarks: where a figure was measured, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark stands for, and what is wanted of it."""

    name: str
    value: float
    unit: str
    target: float
    at_least: bool = True  # else at most

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.target:g}{self.unit}"

    def __str__(self) -> str:
        return f"{self.name}: {self.value:g}{self.unit} (wanted {self.wanted}{'' if self.met else '; falls short'})"

    def record(self) -> dict[str, Any]:
        """As it stands in a JSON file."""
        return {**asdict(self), "met": self.met}


def spread(samples: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """The median, the extremes and the samples themselves, rounded."""
    return {"median": round(statistics.median(samples), digits), "min": round(min(samples), digits),
            "max": round(max(samples), digits), "samples": [round(sample, digits) for sample in samples]}


def time_in_turn(sides: Mapping[str, Callable[[int], object]], repeats: int, desc: str) -> dict[str, list[float]]:
    """Seconds of each side in each repeat. The sides take turns (A B A B …), so that a busy moment hits them alike.

    A side is called with the number of the repeat.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with tqdm(total=repeats * len(sides), desc=desc, dynamic_ncols=True) as bar:
        for repeat in range(repeats):
            for name, run in sides.items():
                bar.set_postfix_str(name)
                begin = perf_counter()
                run(repeat)
                seconds[name].append(perf_counter() - begin)
                bar.update()
    return seconds


def machine() -> dict[str, Any]:
    """The hardware, the versions and the commit. What is not there is None; needs neither torch nor a GPU."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        # A copy without its history, on another machine, is told.
        "commit": os.environ.get("BENCHMARK_COMMIT") or _run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def write_result(name: str, data: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Write `<name>.json` into `directory`: the figures, the machine and the time. Returns the file's path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"name": name, "time": now, "machine": machine(), **data}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    """A command's output in one line, or None when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(done.stdout.strip().splitlines()) or None
