"""`mini-infer bench startup`: seconds from starting a process to the first token, phase by phase.

Every start is a fresh process. A cold one finds an empty kernel cache, a warm one what the start before it compiled.
The operating system's file cache is left as it is: run it twice to have the files of Python and torch in it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mini_infer.config import ConfigError, EngineConfig

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@dataclass(frozen=True)
class StartupBench:
    engine: EngineConfig
    num_iters_cold: int = 1
    num_iters_warm: int = 3
    use_tqdm: bool = True

    def __post_init__(self) -> None:
        if self.num_iters_cold < 1 or self.num_iters_warm < 0:
            raise ConfigError("num_iters_cold must be at least 1 and num_iters_warm at least 0, "
                              f"got {self.num_iters_cold} and {self.num_iters_warm}")


def run_startup(bench: StartupBench) -> dict[str, Any]:
    """{"cold": …, "warm": …}: the median seconds of each phase and of the whole, and every start's own."""
    starts: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    with (tempfile.TemporaryDirectory(prefix="mini-infer-cold-") as root,
          tqdm(total=bench.num_iters_cold + bench.num_iters_warm, desc="starts", disable=not bench.use_tqdm) as bar):
        for number in range(bench.num_iters_cold):
            cache = Path(root, str(number))
            starts["cold"].append(start_once(bench.engine, cache))
            bar.update()
        for _ in range(bench.num_iters_warm):
            starts["warm"].append(start_once(bench.engine, cache))
            bar.update()
    return {kind: {**medians(runs), "starts": runs} for kind, runs in starts.items() if runs}


def start_once(engine: EngineConfig, cache: Path) -> dict[str, Any]:
    """What one process said; raises ConfigError with its last words when it fails."""
    environment = os.environ | {name: str(cache / name.lower()) for name in CACHES}
    command = [sys.executable, "-m", "mini_infer.bench.first_token", repr(time.monotonic()), json.dumps(asdict(engine))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ConfigError(f"the start failed: {lines[-1] if lines else f'exit status {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the whole start and of each phase."""
    return {"total": statistics.median(run["total"] for run in runs),
            "phases": {name: statistics.median(run["phases"][name] for run in runs) for name in runs[0]["phases"]}}
