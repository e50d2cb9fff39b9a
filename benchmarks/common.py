"""Shared by the benchmarks: where a figure was measured, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """The hardware, the versions and the commit. What is not there is None; needs neither torch nor a GPU."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "commit": _run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json`: the figures, the machine and the time. Returns the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
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
