"""A server in a process of its own, started as a user would start it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

REPO = Path(__file__).parents[2]


class Running:
    """`mini-infer serve ARGS` on a free port; a context manager that stops it. Its log is in `log`."""

    def __init__(self, *args: str | Path, command: str = "serve"):
        words = [sys.executable, "-m", "mini_infer.cli", command, "--port", "0", *map(str, args)]
        self.process = subprocess.Popen(words, cwd=REPO, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.port = 0
        start = time.monotonic()
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"https?://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                break
        self.ready_seconds = time.monotonic() - start

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def get(self, path: str) -> tuple[int, Any]:
        return self.send("GET", path)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        return self.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def send(self, method: str, path: str, data: bytes | None = None) -> tuple[int, Any]:
        """Status, and the body read as JSON where it is JSON."""
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def metric(self, name: str) -> float:
        _, page = self.get("/metrics")
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines()
                   if re.match(rf"mini_infer:{name}(\{{| )", line))

    def eventually(self, name: str, value: float, seconds: float = 3.0) -> None:
        """Wait for a metric to have a value."""
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.02)

    def stop(self, how: int = signal.SIGTERM) -> int:
        """The exit status."""
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.log += self.process.stderr.readlines()
            self.process.stderr.close()
        return self.process.wait(timeout=20)

    def __enter__(self) -> Running:
        assert self.port, "".join(self.log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.stop()
