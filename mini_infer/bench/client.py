"""A small HTTP/1.1 client for many streams at once, made so that it is not what is measured.

A connection is an asyncio protocol whose bytes go through httptools' parser; of an answer it keeps the pieces and when
each came, and nothing is decoded before the run is over. That costs a few microseconds a piece.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from mini_infer.config import ConfigError

Pieces = list[tuple[float, bytes]]  # when they came (time.perf_counter), and what


@dataclass
class Answer:
    """A whole HTTP answer; the request was sent at `sent`."""

    sent: float
    status: int = 0
    pieces: Pieces = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class _Connection(asyncio.Protocol):
    """One request at a time. `keep` says whether another one may follow."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.keep = True
        self.heard = False  # something of the answer has come
        self._answer = Answer(0.0)
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[Answer] | None = None

    async def ask(self, request: bytes) -> Answer:
        """Send a whole request; returns its whole answer. Raises ConnectionError when the connection breaks."""
        assert self.transport is not None
        self.heard = False
        self._done = asyncio.get_running_loop().create_future()
        self._answer = Answer(time.perf_counter())
        self._parser = httptools.HttpResponseParser(self)
        if self.transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self.transport.write(request)
        return await self._done

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.keep = False
        self._fail(ConnectionResetError("the connection was closed before the answer was whole"))

    def _fail(self, error: Exception) -> None:
        self.keep = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # httptools' side

    def on_body(self, body: bytes) -> None:
        self._answer.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        self.keep = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)


class Client:
    """Sends requests to one server over as many connections as there are requests at once, and uses them again."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url: {base_url!r} is not like http://127.0.0.1:8000")
        self.base_url = base_url
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/json", **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Raises ConnectionError (or another OSError) when no whole answer comes."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._ask(connection, request)
            except ConnectionResetError:
                if connection.heard:
                    raise
                # Else the server had closed it between two requests.
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port, ssl=self._tls)
        return await self._ask(connection, request)

    async def _ask(self, connection: _Connection, request: bytes) -> Answer:
        try:
            answer = await connection.ask(request)
        except BaseException:
            self._close(connection)
            raise
        if connection.keep:
            self._idle.append(connection)
        else:
            self._close(connection)
        return answer

    def close(self) -> None:
        while self._idle:
            self._close(self._idle.pop())

    @staticmethod
    def _close(connection: _Connection) -> None:
        if connection.transport is not None:
            connection.transport.close()


def sse_events(pieces: Pieces) -> Iterator[tuple[float, bytes]]:
    """The `data` of each server-sent event, with the time at which its end came; an unfinished one is left out.

    However the stream was cut into pieces, the events are the same. Comments and other fields are skipped.
    """
    rest = b""
    for when, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield when, line[5:].strip()
