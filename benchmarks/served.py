"""A server for benchmarks: started as a user would, and asked what it cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.common import ROOT
from mini_infer.config import BUNDLED_MODEL_DIR

S = TypeVar("S", bound="Server")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
SEVEN_B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 4096}


def write_model(directory: Path, **shape: Any) -> Path:
    """The bundled model's directory without its weights, as if it had another shape: enough for a dry run."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((BUNDLED_MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    if "num_hidden_layers" in shape:
        config["layer_types"] = ["full_attention"] * shape["num_hidden_layers"]
        config["max_window_layers"] = shape["num_hidden_layers"]
    (directory / "config.json").write_text(json.dumps({**config, **shape}), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(BUNDLED_MODEL_DIR / name, directory / name)
    return directory


def conditions() -> dict[str, Any]:
    """What else bears upon a figure: how busy the machine was, and whether these processes go before all others
    (`chrt -r 1 python -m benchmarks.NAME`, for a machine that is not quiet)."""
    return {"load_before": round(os.getloadavg()[0], 2),
            "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)}


class Server:
    """`mini-infer serve ARGS` on a free port; a context manager that stops it. `log`: its lines since it was ready."""

    def __init__(self, *args: str):
        command = [sys.executable, "-m", "mini_infer.cli", "serve", "--port", "0", *args]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.port = 0
        assert self.process.stderr is not None
        start = ""
        for line in self.process.stderr:
            start += line
            if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                break
        if not self.port:
            raise RuntimeError(f"the server did not start:\n{start}")
        self.log: list[str] = []
        self._reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()  # a full pipe would stop the server

    @property
    def engine_pid(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the front and of the engine process, since they started."""
        return _cpu_seconds(self.process.pid), _cpu_seconds(self.engine_pid)

    def memory_mb(self) -> tuple[float, float]:
        """Resident, of the front and of the engine process."""
        return _resident_mb(self.process.pid), _resident_mb(self.engine_pid)

    def num_fds(self) -> tuple[int, int]:
        """Open file descriptors of the front and of the engine process."""
        front, engine = (len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.process.pid, self.engine_pid))
        return front, engine

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return response.read()

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name, those of different labels added up."""
        found: dict[str, float] = {}
        for series, value in self._samples():
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + value
        return found

    def metric_by(self, name: str, label: str) -> dict[str, float]:
        """The samples of one metric by the values of one label."""
        pattern = re.compile(rf'{name}{{.*\b{label}="([^"]*)"')
        return {match[1]: value for series, value in self._samples() if (match := pattern.match(series))}

    def _samples(self) -> Iterator[tuple[str, float]]:
        for line in self.get("/metrics").decode().splitlines():
            if line.startswith("mini_infer:"):
                series, _, value = line.removeprefix("mini_infer:").rpartition(" ")
                yield series, float(value)

    def look(self) -> dict[str, Any]:
        """The engine's own view of itself, as the page sees it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/engine/events", timeout=30) as response:
            for line in response:
                if line.startswith(b"data: ") and (view := json.loads(line[6:]).get("view")) is not None:
                    return view
        raise RuntimeError("the server shows no view of its engine")

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGTERM)
        self._reader.join()  # the end of the log is the end of both processes
        self.process.wait(timeout=60)
        assert self.process.stderr is not None
        self.process.stderr.close()


class DryServer(Server):
    """`mini-infer serve MODEL --dry-run ARGS`."""

    def __init__(self, model: Path, *args: str):
        super().__init__(str(model), "--dry-run", *args)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
