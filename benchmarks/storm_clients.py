"""The clients of the storm: each behaves in one manner for a while, then in another, until the time is over."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import uvloop
from tqdm import tqdm

from benchmarks.abort_storm import MAX_STAY, come_and_go
from benchmarks.storm_answers import HttpAnswer, Said, StreamFailedError, read_answer, require, said
from benchmarks.storm_requests import NOT_HTTP, Ask, bad_body, odd_request

GIVE_UP_SECONDS = 120.0  # nobody is to be left without an answer, or an end, for longer
MAX_FAULTS = 20  # told in words; all are counted
BUSY, DEADLINE = 429, 504
READER_BYTES = 4096  # buffered by the client of a slow reader, and as much by its socket


@dataclass
class Report:
    """What the clients saw. `faults`: what the server did wrong; `faults_by_kind` counts them all."""

    manners: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    streams: int = 0  # read to their end, and found to have one
    compared: int = 0  # answers that were known before
    faults: list[str] = field(default_factory=list)
    faults_by_kind: Counter[str] = field(default_factory=Counter)

    def fault(self, kind: str, words: str) -> None:
        self.faults_by_kind[kind] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(f"{kind}: {words[:400]}")


class DifferentAnswerError(Exception):
    """The answer is not the one that the same request had when nobody else was there."""


class UnexpectedStatusError(Exception):
    """Not what such a request is to be answered with."""


FAULTS = {DifferentAnswerError: "different", UnexpectedStatusError: "status", asyncio.TimeoutError: "no answer in time",
          asyncio.IncompleteReadError: "cut off", OSError: "connection lost", StreamFailedError: "stream failed"}


class Clients:
    """`known`: requests and the answers that they had, one by one. `port`: the server's, on this machine."""

    def __init__(self, port: int, known: Sequence[tuple[Ask, list[Said]]], seed: int):
        self.report = Report()
        self._port = port
        self._known = known
        self._asks = [ask for ask, _ in known]
        self._seed = seed
        self._manners: dict[Callable[[random.Random], Awaitable[None]], int] = {
            self.ask: 30, self.leave: 30, self.read_slowly: 8, self.keep_asking: 8, self.pipeline: 5, self.be_odd: 20,
            self.send_bad_bodies: 8, self.send_noise: 10, self.look: 4}

    async def run(self, number: int, seconds: float) -> None:
        """`number` of them at a time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        clients = [asyncio.ensure_future(self._client(random.Random(f"{self._seed} {i}"), end)) for i in range(number)]
        with tqdm(total=round(seconds), desc="storm", unit="s", dynamic_ncols=True) as bar:
            while loop.time() < end:
                await asyncio.sleep(min(1.0, end - loop.time()))
                bar.update(min(1, bar.total - bar.n))
                bar.set_postfix(requests=sum(self.report.manners.values()), faults=self.report.faults_by_kind.total())
        await asyncio.gather(*clients)

    async def _client(self, chance: random.Random, end: float) -> None:
        loop = asyncio.get_running_loop()
        manners, weights = list(self._manners), list(self._manners.values())
        while loop.time() < end:
            [manner] = chance.choices(manners, weights)
            self.report.manners[manner.__name__] += 1
            try:
                await asyncio.wait_for(manner(chance), GIVE_UP_SECONDS)
            except Exception as error:
                kind = next((name for kind, name in FAULTS.items() if isinstance(error, kind)), "broken")
                self.report.fault(kind, f"{manner.__name__}: {error!r}")

    @asynccontextmanager
    async def _connection(self, sock: socket.socket | None = None) -> AsyncIterator[tuple[asyncio.StreamReader,
                                                                                         asyncio.StreamWriter]]:
        """To the server; closed in the end, whatever was not read."""
        if sock is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        else:
            reader, writer = await asyncio.open_connection(sock=sock, limit=READER_BYTES)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> HttpAnswer:
        answer = await read_answer(reader)
        self.report.statuses[answer.status] += 1
        return answer

    def _check(self, known: tuple[Ask, list[Said]], answer: HttpAnswer) -> None:
        """An answer to a good request: the known one, or that the server is busy."""
        ask, expected = known
        if answer.status == BUSY:
            return
        if answer.status != 200:
            raise UnexpectedStatusError(f"{ask}: {answer.status} {answer.body!r}")
        found = said(ask.path, answer)
        self.report.streams += answer.streamed
        self.report.compared += 1
        if found != expected:
            raise DifferentAnswerError(f"{ask}: {found}, not {expected}")

    # ---- manners ---------------------------------------------------------------------------------------------------

    async def ask(self, chance: random.Random) -> None:
        """A good request; again after a while when the server is busy."""
        known = chance.choice(self._known)
        data = known[0].data(stream=chance.random() < 0.6)
        for _ in range(5):
            async with self._connection() as (reader, writer):
                writer.write(data)
                answer = await self._answer(reader)
            self._check(known, answer)
            if answer.status != BUSY:
                return
            await asyncio.sleep(chance.random())

    async def leave(self, chance: random.Random) -> None:
        """Gone at any moment."""
        await come_and_go(self._port, chance)

    async def read_slowly(self, chance: random.Random) -> None:
        """A few bytes at a time, with a long pause; then the rest, or no more."""
        known = chance.choice(self._known)
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READER_BYTES)
        sock.setblocking(False)
        slowly = asyncio.StreamReader()

        async def drip(reader: asyncio.StreamReader) -> None:
            few = chance.randrange(20, 400)
            for pieces in count():
                piece = await reader.read(chance.randrange(1, 60) if pieces < few else 65536)
                if not piece:
                    return slowly.feed_eof()
                slowly.feed_data(piece)
                await asyncio.sleep(0 if pieces > few else chance.random() * (3 if pieces == few else 0.01))

        async with self._connection(sock) as (reader, writer):
            writer.write(known[0].data(stream=True))
            dripping = asyncio.ensure_future(drip(reader))
            patience = chance.choice((2.0, 2 * GIVE_UP_SECONDS))
            try:
                self._check(known, await asyncio.wait_for(self._answer(slowly), patience))
            except asyncio.TimeoutError:
                pass  # this one leaves
            finally:
                dripping.cancel()

    async def keep_asking(self, chance: random.Random) -> None:
        """Good and bad requests by turns on one connection."""
        async with self._connection() as (reader, writer):
            for _ in range(chance.randrange(2, 8)):
                known = chance.choice(self._known)
                if chance.random() < 0.3:
                    status, data = bad_body(chance)
                    writer.write(data)
                    answer = await self._answer(reader)
                    self._expect(answer, (status, BUSY), data)
                else:
                    writer.write(known[0].data(stream=chance.random() < 0.5))
                    answer = await self._answer(reader)
                    self._check(known, answer)
                if answer.last:
                    return

    async def pipeline(self, chance: random.Random) -> None:
        """All requests at once, then all answers, which come in order; or gone among them."""
        known = chance.sample(list(self._known), 3)
        async with self._connection() as (reader, writer):
            writer.write(b"".join(one[0].data(stream=chance.random() < 0.5) for one in known))
            if chance.random() < 0.3:
                return await asyncio.sleep(chance.random() * MAX_STAY)
            for one in known:
                answer = await self._answer(reader)
                self._check(one, answer)
                if answer.last:
                    return

    async def be_odd(self, chance: random.Random) -> None:
        """Nearly a good request: no 5xx, but for the deadline that it may have reached."""
        path, data = odd_request(self._asks, chance)
        async with self._connection() as (reader, writer):
            writer.write(data)
            answer = await self._answer(reader)
        self._expect(answer, (200, 400, 404, BUSY, DEADLINE), data)
        if answer.status == 200:
            with suppress(StreamFailedError):
                said(path, answer)
                self.report.streams += answer.streamed

    async def send_bad_bodies(self, chance: random.Random) -> None:
        """Each gets its refusal."""
        async with self._connection() as (reader, writer):
            for _ in range(3):
                status, data = bad_body(chance)
                writer.write(data)
                answer = await self._answer(reader)
                self._expect(answer, (status, BUSY), data)
                if answer.last:
                    return

    async def send_noise(self, chance: random.Random) -> None:
        """What is not HTTP: refused, or waited for to go on until this client has enough."""
        noise = chance.choice(NOT_HTTP)(chance)
        found = b""
        async with self._connection() as (reader, writer):
            writer.write(noise)
            with suppress(asyncio.TimeoutError, OSError):
                found = await asyncio.wait_for(reader.read(2**16), 0.5)
        require(not found or found.startswith(b"HTTP/1.1 "), f"{found!r} to {noise[:200]!r}")
        if b"HTTP/1.1 5" in found:
            raise UnexpectedStatusError(f"{found!r} to {noise[:200]!r}")

    async def look(self, chance: random.Random) -> None:
        """At what the server shows of itself."""
        path = chance.choice(("/metrics", "/health", "/v1/models", "/", "/openapi.json",
                              "/nothing", "/v1/engine/events"))
        async with self._connection() as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if path == "/v1/engine/events":
                await reader.readuntil(b"event: view")
                await asyncio.sleep(chance.random())
            else:
                self._expect(await self._answer(reader), (200, 404), path.encode())

    @staticmethod
    def _expect(answer: HttpAnswer, statuses: tuple[int, ...], data: bytes) -> None:
        if answer.status not in statuses:
            raise UnexpectedStatusError(f"{answer.status} {answer.body[:200]!r}, not {statuses}, to {data[:300]!r}")


def storm(port: int, known: Sequence[tuple[Ask, list[Said]]], number: int, seconds: float, seed: int) -> Report:
    """`number` clients at a time for so long."""
    gc.enable()  # in a process that measures nothing, and stays for long
    clients = Clients(port, known, seed)
    uvloop.run(clients.run(number, seconds))
    return clients.report


def one_by_one(port: int, asks: Sequence[Ask]) -> list[list[Said]]:
    """The answers of requests that are made alone, each when the one before has ended. Raises RuntimeError where one
    is not answered."""

    async def ask(one: Ask) -> list[Said]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(one.data(stream=False))
        answer = await read_answer(reader)
        writer.close()
        if answer.status != 200:
            raise RuntimeError(f"{one}: {answer.status} {answer.body!r}")
        return said(one.path, answer)

    async def ask_all() -> list[list[Said]]:
        return [await ask(one) for one in tqdm(asks, desc="one by one", dynamic_ncols=True)]

    return uvloop.run(ask_all())
