"""A program in a terminal of its own: type, and wait for what it shows."""

from __future__ import annotations

import codecs
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path
from types import TracebackType

REPO = Path(__file__).parents[2]


class Terminal:
    """`mini-infer ARGS` behind a pseudo-terminal; a context manager that ends it."""

    def __init__(self, *args: str | Path, home: Path):
        self.shown = ""  # what has not been waited for yet
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end inside a character
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(REPO)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background were told to ignore it
            environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "dumb", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "mini_infer.cli", *map(str, args)]
            os.execvpe(sys.executable, command, environment)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, seconds: float = 30.0) -> str:
        """Everything shown up to and including `text`; what comes after it waits for the next call."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} was not shown, but {self.shown!r}"
            try:
                self._read()
            except OSError:  # the program has ended
                raise AssertionError(f"it ended without {text!r}: {self.shown!r}") from None
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def _read(self) -> None:
        """Raises OSError when the program has ended."""
        self.shown = (self.shown + self._decoder.decode(os.read(self._fd, 1 << 16))).replace("\r\n", "\n")

    def press_until(self, key: str, text: str) -> None:
        """A signal that comes just before `input` begins to wait is seen with the next key: press again."""
        for _ in range(20):
            self.type(key)
            try:
                self.wait_for(text, seconds=1.0)
                return
            except AssertionError:
                continue
        raise AssertionError(f"{text!r} was not shown, but {self.shown!r}")

    def exit_status(self, seconds: float = 20.0) -> int:
        """Wait for the end."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, "it did not end"
            if select.select([self._fd], [], [], 0.05)[0]:
                try:
                    self._read()
                except OSError:
                    time.sleep(0.02)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
