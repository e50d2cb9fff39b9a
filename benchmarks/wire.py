"""A load client that costs little: connections as bare protocols on one event loop, in a process of its own.

An answer is not parsed as JSON: its events are counted, and the usage in its last chunk is read. So the client takes
a few microseconds an event, which are reported beside the server's.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import random
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
END = b"0\r\n\r\n"  # of a chunked answer
USAGE = re.compile(rb'"completion_tokens":(\d+)')


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """The function's result, from a fresh process; so that a client's work is not the benchmark's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), gc.disable) as pool:
        return pool.submit(function, *args).result()


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    """A whole POST, ready for a socket."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@dataclass(slots=True)
class Load:
    """What one client process saw. Times are seconds of `time.monotonic`, which all processes of a machine share."""

    tokens: int = 0  # as the usage of each answer says
    events: int = 0  # with a piece of text; not usage, not [DONE]
    seconds: float = 0.0  # from the first request to the last byte
    cpu_seconds: float = 0.0  # of this process meanwhile
    arrivals: list[list[list[float]]] = field(default_factory=list)  # by connection, by request: of each token


def stream_load(port: int, bodies: list[dict[str, Any]], rounds: int, record: bool = False) -> Load:
    """As many connections as bodies; each sends its body `rounds` times, one after the other, and reads the stream.

    Bodies must ask for a stream with usage. Raises RuntimeError when an answer is not what was asked for.
    """
    return uvloop.run(_stream_load(port, bodies, rounds, record))


async def _stream_load(port: int, bodies: list[dict[str, Any]], rounds: int, record: bool) -> Load:
    loop = asyncio.get_running_loop()
    connections = [_StreamReader(request_bytes("/v1/completions", body), rounds, record) for body in bodies]
    for connection in connections:
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)
    cpu, begin = _cpu_seconds(), time.monotonic()
    for connection in connections:
        connection.ask()
    await asyncio.gather(*[connection.finished for connection in connections])
    load = Load(seconds=time.monotonic() - begin, cpu_seconds=_cpu_seconds() - cpu)
    for connection in connections:
        load.tokens += connection.tokens
        load.events += connection.events - 2 * rounds  # less usage and [DONE]
        load.arrivals.append(connection.arrivals)
    return load


class _StreamReader(asyncio.Protocol):
    """One connection. Counts `data: ` wherever the bytes are cut."""

    def __init__(self, request: bytes, rounds: int, record: bool):
        self.tokens = 0
        self.events = 0
        self.arrivals: list[list[float]] = []
        self.finished = asyncio.get_running_loop().create_future()
        self._request = request
        self._rounds = rounds
        self._record = record
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def ask(self) -> None:
        assert self._transport is not None
        self.arrivals.append([])
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        tail = self._tail
        found = data.count(b"data: ") + (tail[-5:] + data[:5]).count(b"data: ")  # the second: a mark across the cut
        if self._record:
            text = data if tail else data[data.find(b"\r\n\r\n") :]  # without the headers
            # A dry run's tokens are words that begin with a space, and its JSON has no other.
            self.arrivals[-1] += [time.monotonic()] * (text.count(b" ") - found)
        self.events += found
        if len(data) < 512:
            self._tail = data = (tail + data)[-512:]
        else:
            self._tail = data[-512:]
        if data.endswith(END):
            self._answered()

    def _answered(self) -> None:
        usage = USAGE.search(self._tail)
        if usage is None:
            self.finished.set_exception(RuntimeError(f"not an answer with usage: {self._tail[-200:]!r}"))
            return
        self.tokens += int(usage[1])
        self._tail = b""
        self._rounds -= 1
        if self._rounds:
            self.ask()
        else:
            assert self._transport is not None
            self._transport.close()
            self.finished.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(RuntimeError(f"the server closed the connection: {self._tail[-200:]!r}"))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(slots=True)
class Answer:
    """One request of an open-loop load. `due`: seconds since the load began; the other times are seconds since then,
    whether or not the client was on time."""

    due: float
    status: int = 0  # 0: the connection was lost, or there was none
    first_byte: float = 0.0
    last_byte: float = 0.0
    tokens: int = 0


def open_load(port: int, body: dict[str, Any], rate: float, seconds: float, seed: int) -> list[Answer]:
    """Requests at random times (a Poisson process), `rate` a second, each on a connection of its own, whatever has
    become of the ones before. The body must ask for a stream with usage."""
    return uvloop.run(_open_load(port, request_bytes("/v1/completions", body), rate, seconds, seed))


async def _open_load(port: int, request: bytes, rate: float, seconds: float, seed: int) -> list[Answer]:
    loop = asyncio.get_running_loop()
    chance = random.Random(seed)
    begin, due = loop.time() + 0.05, 0.0
    asked: list[asyncio.Task[None]] = []
    answers: list[Answer] = []
    while (due := due + chance.expovariate(rate)) < seconds:
        if (wait := begin + due - loop.time()) > 0:
            await asyncio.sleep(wait)
        answers.append(Answer(due))
        asked.append(asyncio.ensure_future(_ask_once(port, request, begin, answers[-1])))
    await asyncio.gather(*asked)
    return answers


async def _ask_once(port: int, request: bytes, begin: float, answer: Answer) -> None:
    reader = _AnswerReader(request, begin + answer.due, answer)
    with suppress(OSError):
        await asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", port)
        await reader.finished


class _AnswerReader(asyncio.Protocol):
    """Reads one answer: a stream to its end, or whatever a refusal is in one piece."""

    def __init__(self, request: bytes, due: float, answer: Answer):
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._request = request
        self._due = due
        self._answer = answer
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if not answer.status:
            answer.status, answer.first_byte = int(data[9:12]), self._loop.time() - self._due
        self._tail = (self._tail + data)[-512:]
        if answer.status != 200 or self._tail.endswith(END):
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer.last_byte = self._loop.time() - self._due
        if (usage := USAGE.search(self._tail)) is not None:
            self._answer.tokens = int(usage[1])
        self.finished.set_result(None)
