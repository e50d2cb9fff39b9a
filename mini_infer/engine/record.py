"""A run, written down: every request, plan and result, so that the scheduler can be driven through it again.

A recording is gzip over lines of JSON (`zcat FILE | head` reads it). The first line says what the run was of: the
version and both configurations, the key of the prefix hashes among them. Then comes a line for each call of the
scheduler, in the order of the calls:

    [kind, seconds, what went in, what came of it]

    "add"     an AddRequest                  null
    "abort"   request ids                    the ids that were ended
    "plan"    null                           the StepPlan, or null
    "result"  the StepResult's tokens        [request id, finish reason] of whatever ended

`{"raised": message}` stands in the place of the last where a call raised. A plan has the number and a digest of an
admitted slot's tokens in the place of its tokens and parameters, which came with the request. The last line,
`["end", lines, digest]`, closes the chain: a recording without it was cut off.

While a run is recorded the scheduler's clock stands still within a call, so the one time of each line is all that a
replay needs to know of clocks.
"""

from __future__ import annotations

import os
import sys
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mini_infer import __version__
from mini_infer.config import ConfigError, EngineConfig, SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.scheduler import Scheduler
from mini_infer.protocol import AddRequest, RequestError, TokensOut

FORMAT = "mini-infer recording 2"  # 1 had the decode rows of a plan in another order
GZIP = 16 + zlib.MAX_WBITS  # zlib's name for a gzip stream
FLUSH_SECONDS = 1.0  # a run that dies loses no more than this
DIGEST_BYTES = 16

encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class StillClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class RecordingWriter:
    """Writes lines to a new file, readable by its owner alone: prompts are private.

    Raises ConfigError when the file cannot be made. A file that cannot be written later (a full disk) ends the
    recording with a word on standard error, and not the engine.
    """

    def __init__(self, path: str, header: dict[str, Any]):
        self.path, self._fd = _new_file(path)
        self._zlib = zlib.compressobj(1, wbits=GZIP)
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._num_lines = 0
        self._open = True
        self._flushed_at = 0.0
        self.write(encode(header))
        self.flush(0.0)

    def write(self, line: bytes) -> None:
        self._num_lines += 1
        self._digest.update(line)
        self._put(self._zlib.compress(line + b"\n"))

    def flush_if_due(self, now: float) -> None:
        if now - self._flushed_at >= FLUSH_SECONDS:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Make everything so far readable, whatever happens next."""
        self._flushed_at = now
        self._put(self._zlib.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        """End the recording as a whole one. Safe to call again."""
        if self._open:
            end = encode(["end", self._num_lines, self._digest.hexdigest()])
            self._put(self._zlib.compress(end + b"\n") + self._zlib.flush())
            self._stop()

    def _put(self, data: bytes) -> None:
        try:
            while self._open and data:
                data = data[os.write(self._fd, data):]
        except OSError as error:
            print(f"mini-infer: recording to {self.path} has ended: {error.strerror}", file=sys.stderr, flush=True)
            self._stop()

    def _stop(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)


def _new_file(path: str) -> tuple[str, int]:
    """FILE, or FILE.1, FILE.2, … where there is one already: nobody's recording is overwritten."""
    number = 0
    while True:
        name = f"{path}.{number}" if number else path
        try:
            return name, os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"record: {name} cannot be written ({error.strerror})") from None


class RecordingScheduler(Scheduler):
    """The scheduler, with a line in the recording for each call that changes it."""

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float], writer: RecordingWriter):
        self._real_clock = clock
        self._still_clock = StillClock()
        super().__init__(config, self._still_clock.now)
        self._writer = writer
        self._end_file = weakref.finalize(self, writer.close)  # where nobody calls `close`, the program's end does

    def close(self) -> None:
        self._end_file()

    def now(self) -> float:
        return self._real_clock()

    def add(self, item: AddRequest) -> None:
        try:
            given = encode(item)
        except (TypeError, ValueError) as error:  # before anything has changed
            raise RequestError(f"the request cannot be recorded: {error}") from None
        self._call("add", given, lambda: super(RecordingScheduler, self).add(item), lambda _: None)

    def abort(self, request_ids: Iterable[int], reason: str = "abort") -> list[TokensOut]:
        ids = list(request_ids)
        return self._call("abort", encode(ids), lambda: super(RecordingScheduler, self).abort(ids, reason), aborted_ids)

    def schedule(self) -> StepPlan | None:
        return self._call("plan", b"null", super().schedule, plan_body)

    def update(self, plan: StepPlan, result: StepResult) -> list[TokensOut]:
        return self._call("result", encode(result_body(result)),
                          lambda: super(RecordingScheduler, self).update(plan, result), endings)

    def _call(self, kind: str, given: bytes, call: Callable[[], T], outcome_of: Callable[[T], Any]) -> T:
        now = self._still_clock.time = self._real_clock()
        outcome: Any = None
        try:
            value = call()
            outcome = outcome_of(value)
            return value
        except Exception as error:
            outcome = raised(error)
            raise
        finally:
            self._writer.write(b'["%b",%b,%b,%b]' % (kind.encode(), encode(now), given, encode(outcome)))
            if self.has_work():
                self._writer.flush_if_due(now)
            else:
                self._writer.flush(now)


def record(config: EngineConfig, scheduler_config: SchedulerConfig, clock: Callable[[], float]) -> RecordingScheduler:
    """A scheduler that writes its run to `config.record`. Raises ConfigError when the file cannot be made."""
    assert config.record is not None
    header = {"format": FORMAT, "version": __version__, "scheduler": asdict(scheduler_config), "engine": asdict(config)}
    writer = RecordingWriter(str(Path(config.record).absolute()), header)
    print(f"mini-infer: recording to {writer.path}, prompts included", file=sys.stderr, flush=True)
    return RecordingScheduler(scheduler_config, clock, writer)


# ---- what of each call is written: a replay makes the same of its own, and compares ---------------------------------


def aborted_ids(outputs: list[TokensOut]) -> list[int]:
    return [output.request_id for output in outputs]


def endings(outputs: list[TokensOut]) -> list[tuple[int, str]]:
    return [(output.request_id, output.finish_reason) for output in outputs if output.finish_reason is not None]


def plan_body(plan: StepPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    body = {field.name: getattr(plan, field.name) for field in fields(plan)}
    body["admitted"] = [{**vars(slot), "tokens": tokens_digest(slot.tokens), "params": None} for slot in plan.admitted]
    return body


def tokens_digest(tokens: list[int]) -> str:
    digest = blake2b(array("q", tokens).tobytes(), digest_size=8).hexdigest()
    return f"{len(tokens)} {digest}"


def result_body(result: StepResult) -> dict[str, Any]:
    """Of log-probabilities only the number, which decides how far a prompt may be matched after a preemption."""
    body = {field.name: getattr(result, field.name) for field in fields(result)}
    del body["logprobs"]
    body["prompt_logprobs"] = {row: len(entries) for row, entries in result.prompt_logprobs.items()}
    return body


def raised(error: Exception) -> dict[str, str]:
    return {"raised": f"{type(error).__name__}: {error}"}
