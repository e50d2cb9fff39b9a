"""The scheduler driven again through a recorded run (see engine/record.py), each decision compared with the recorded.

Nothing that a recording names is run or imported.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from mini_infer.config import ConfigError, SchedulerConfig
from mini_infer.core.plan import StepPlan, StepResult
from mini_infer.core.policy import make_policy
from mini_infer.core.scheduler import Scheduler
from mini_infer.engine.record import (
    DIGEST_BYTES,
    FORMAT,
    GZIP,
    StillClock,
    aborted_ids,
    encode,
    endings,
    plan_body,
    raised,
)
from mini_infer.models.registry import load_plugins
from mini_infer.protocol import AddRequest, TokenLogprobs

MAX_LINE_BYTES = 1 << 28
CHUNK_BYTES = 1 << 20


class RecordingError(ConfigError):
    """The file is no recording, or is damaged; the message says which."""


class Header(msgspec.Struct):
    format: str
    version: str
    scheduler: SchedulerConfig
    engine: dict[str, Any]


class _Result(msgspec.Struct, forbid_unknown_fields=True):
    """What `record.result_body` wrote."""

    step_id: int
    sampled: list[list[int]]
    prompt_logprobs: dict[int, int]
    failed: dict[int, str]
    error: str | None
    at_fault: dict[int, str] = {}

    def as_result(self) -> StepResult:
        blank = TokenLogprobs([], [], 0)
        entries = {row: [blank] * min(number, CHUNK_BYTES) for row, number in self.prompt_logprobs.items()}
        return StepResult(self.step_id, self.sampled, prompt_logprobs=entries, failed=self.failed,
                          at_fault=self.at_fault, error=self.error)


class Event(NamedTuple):
    """One line of a recording; `given` and `outcome` are still JSON."""

    line: int
    kind: str
    time: float
    given: bytes
    outcome: bytes


class Recording:
    """A file, read as a stream. Raises RecordingError when it is no recording.

    `complete` and `damage` are known once all events were read: a run that died leaves a recording without an end, and
    a file that was changed has another digest than its end says.
    """

    def __init__(self, path: str):
        self.path = path
        self.complete = False
        self.damage: str | None = None
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._lines = self._read_lines()
        try:
            first = next(self._lines)
            self._digest.update(first)
            self.header = msgspec.json.decode(first, type=Header)
            if self.header.format != FORMAT:
                raise RecordingError(f"{path} is a {self.header.format!r}; this version reads {FORMAT!r}")
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
        except (StopIteration, ValueError) as error:
            if isinstance(error, RecordingError):
                raise
            raise RecordingError(f"{path} is not a recording of mini-infer"
                                 f"{f' ({self.damage})' if self.damage else ''}") from None

    def events(self) -> Iterator[Event]:
        """Up to the end, or to where the file is cut off or damaged."""
        number = 1
        for number, line in enumerate(self._lines, 2):
            try:
                parts = msgspec.json.decode(line, type=list[msgspec.Raw])
                kind = msgspec.json.decode(parts[0], type=str)
                if kind == "end":
                    self._check_end(line, number)
                    return
                event = Event(number, kind, msgspec.json.decode(parts[1], type=float), bytes(parts[2]), bytes(parts[3]))
            except (msgspec.MsgspecError, IndexError):
                self.damage = f"line {number} is not an event"
                return
            self._digest.update(line)
            yield event

    def _check_end(self, line: bytes, number: int) -> None:
        self.complete = line == encode(["end", number - 1, self._digest.hexdigest()])
        if not self.complete:
            self.damage = "its content is not what its end says: it was changed after it was written"
        elif next(self._lines, None) is not None:
            self.damage = "something follows its end"

    def _read_lines(self) -> Iterator[bytes]:
        unzip, rest = zlib.decompressobj(GZIP), b""
        with open(self.path, "rb") as file:
            while data := file.read(CHUNK_BYTES):
                while data and not unzip.eof:
                    try:
                        rest += unzip.decompress(data, CHUNK_BYTES)
                    except zlib.error as error:
                        self.damage = f"damaged data: {error}"
                        return
                    data = unzip.unconsumed_tail
                    *lines, rest = rest.split(b"\n")
                    yield from lines
                    if len(rest) > MAX_LINE_BYTES:
                        self.damage = "a line without an end"
                        return
        if rest and self.complete:
            yield rest


@dataclass(frozen=True)
class Difference:
    """Where a replay left the recorded run: `path` inside what the event brought."""

    event: Event
    path: str
    recorded: Any
    replayed: Any


@dataclass
class Report:
    """What a replay found; `difference` is the first, where it stopped."""

    num_events: int = 0
    num_plans: int = 0
    difference: Difference | None = None


def load_policies(plugins: Iterable[str], policy: str) -> None:
    """Import `plugins`, one of which registers the run's policy, and never what the recording says it had imported.

    Raises ConfigError when the policy is not known then.
    """
    load_plugins(plugins)
    try:
        make_policy(policy)
    except ConfigError as error:
        raise ConfigError(f"{error}; name the plug-in that registers it with --plugin") from None


def replay(recording: Recording) -> Report:
    """Drive a new scheduler through the recording until its end or the first difference.

    Raises RecordingError for an event that no scheduler has.
    """
    player, report = _Player(recording.header.scheduler), Report()
    for event in recording.events():
        replayed = player.play(event)
        if replayed != event.outcome:
            report.difference = _difference(event, replayed)
            break
        report.num_events += 1
        report.num_plans += event.kind == "plan" and event.outcome != b"null"
    return report


class _Player:
    """One scheduler, its clock, and the plans whose results are not in."""

    def __init__(self, config: SchedulerConfig):
        self._clock = StillClock()
        self._scheduler = Scheduler(config, self._clock.now)
        self._plans: dict[int, StepPlan] = {}
        self._play: dict[str, Callable[[bytes], Any]] = {
            "add": self._add, "abort": self._abort, "plan": self._schedule, "result": self._update}

    def play(self, event: Event) -> bytes:
        """What the event brings this time, as the recording would have it."""
        if event.kind not in self._play:
            raise RecordingError(f"line {event.line}: {event.kind!r} is not an event that this version knows")
        self._clock.time = event.time
        try:
            outcome = self._play[event.kind](event.given)
        except msgspec.MsgspecError as error:
            raise RecordingError(f"line {event.line}: {error}") from None
        except Exception as error:  # the recorded run may have raised the same
            outcome = raised(error)
        return encode(outcome)

    def _add(self, given: bytes) -> None:
        self._scheduler.add(msgspec.json.decode(given, type=AddRequest))

    def _abort(self, given: bytes) -> list[int]:
        return aborted_ids(self._scheduler.abort(msgspec.json.decode(given, type=list[int])))

    def _schedule(self, given: bytes) -> dict[str, Any] | None:
        plan = self._scheduler.schedule()
        if plan is not None:
            self._plans[plan.step_id] = plan
        return plan_body(plan)

    def _update(self, given: bytes) -> list[tuple[int, str]]:
        result = msgspec.json.decode(given, type=_Result).as_result()
        return endings(self._scheduler.update(self._plans.pop(result.step_id), result))


def _difference(event: Event, replayed: bytes) -> Difference:
    path, old, new = "", msgspec.json.decode(event.outcome), msgspec.json.decode(replayed)
    while True:
        if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
            steps = [(f".{key}", old[key], new[key]) for key in old]
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            steps = [(f"[{index}]", *pair) for index, pair in enumerate(zip(old, new))]
        else:
            return Difference(event, path, old, new)
        unequal = [step for step in steps if step[1] != step[2]]
        if not unequal:
            return Difference(event, path, old, new)
        path, old, new = path + unequal[0][0], unequal[0][1], unequal[0][2]


def describe(event: Event, start: float) -> str:
    """One event for people; `start`: the time of the first, in seconds."""
    given, outcome = msgspec.json.decode(event.given), msgspec.json.decode(event.outcome)
    return f"{event.time - start:10.4f} s  {event.kind:<6}  {_words(event.kind, given, outcome)}"


def _words(kind: str, given: Any, outcome: Any) -> str:
    if isinstance(outcome, dict) and "raised" in outcome:
        what = f"#{given['request_id']} " if kind == "add" else ""
        return f"{what}raised {outcome['raised']}"
    if kind == "add":
        params, salt = given["params"], ", salted" if given["cache_salt"] else ""
        return (f"#{given['request_id']}: {len(given['prompt_token_ids'])} prompt tokens, max_tokens "
                f"{params['max_tokens']}, priority {given['priority']}{salt}")
    if kind == "abort":
        return f"asked for {_ids(given)}; ended {_ids(outcome)}"
    if kind == "plan":
        return "nothing to do" if outcome is None else _plan_words(outcome)
    tokens = ", ".join(str(len(row)) if len(row) != 1 else str(row[0]) for row in given["sampled"])
    words = f"step {given['step_id']}: {given['error'] or f'tokens {tokens}'}"
    for row, message in given["failed"].items():
        words += f"; row {row} failed: {message}"
    return words + "".join(f"; #{request_id} ended ({reason})" for request_id, reason in outcome)


def _plan_words(plan: dict[str, Any]) -> str:
    rows = ", ".join(f"#{row[0]} {row[3]}+{row[4]}{'' if row[7] else ' (no sample)'}" for row in plan["seqs"])
    words = f"step {plan['step_id']}: {sum(row[4] for row in plan['seqs'])} tokens: {rows}"
    for slot in plan["admitted"]:
        words += (f"; #{slot['request_id']} admitted to slot {slot['slot']} with {slot['tokens'].split()[0]} tokens, "
                  f"{slot['num_computed']} cached, blocks {slot['blocks']}")
    if plan["released_slots"]:
        words += f"; slots {plan['released_slots']} released"
    return words


def _ids(request_ids: list[int]) -> str:
    return ", ".join(f"#{request_id}" for request_id in request_ids) or "none"
