"""A connection that brings its requests in time and within limits, also those of all connections together, and gets its
refusals in the form of all others."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools
import msgspec
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mini_infer.server.buffers import Buffers
from mini_infer.server.errors import CUT_SHORT, INVALID, error_body
from mini_infer.server.limits import (
    BODY_SECONDS,
    HEADER_SECONDS,
    LINGER_SECONDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_PIPELINED_BYTES,
    SMALL_REQUEST,
)

_REASONS = {400: b"Bad Request", 429: b"Too Many Requests\r\nretry-after: 1", 431: b"Request Header Fields Too Large"}


class Connection(HttpToolsProtocol):
    """uvicorn's, which has no limit of its own on headers, on the time that they and a body take, or on requests that
    come before the one before is answered; and which tells only the newest of these that the client has gone."""

    def __init__(self, buffers: Buffers, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._buffers = buffers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_bytes = 0
        self._num_headers = 0
        self._began = False  # in the data that is being read
        self._in_headers = True  # they are awaited, or on their way
        self._timer: asyncio.TimerHandle | None = None  # while headers or a body are awaited
        self._answered: RequestResponseCycle | None = None  # now, or last; later ones wait in the pipeline
        self._pipelined_bytes = 0
        self._sizes: deque[int] = deque()  # bytes of the requests that are not answered, as they are counted in buffers
        self._no_room = False  # for the newest of them
        self._lingers = False  # until its client has read the last answer
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._tell_that_client_is_gone()
        self._buffers.caught_up(self.transport)
        self._release()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._buffers.keeps_waiting(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._buffers.caught_up(self.transport)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        self._began = False
        super().data_received(data)
        # The parser collects a header before it shows it, so what it has not shown is counted here.
        if self._in_headers and not self._began and not self._lingers and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._too_large():
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = True
        self._sizes.append(0)
        self._header_bytes = self._num_headers = 0
        if not self._in_headers:
            self._in_headers = True
            self._wait(HEADER_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._spend(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._spend(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._wait(BODY_SECONDS)
        self._expect(next((value for name, value in self.headers if name == b"content-length"), b"0"))
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests wait")
        if self.pipeline:  # uvicorn would not read on, and so not see the client go
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._hold(len(body))
        if self.cycle is not self._answered:
            self._pipelined_bytes += len(body)
            if self._pipelined_bytes > MAX_PIPELINED_BYTES:
                raise httptools.HttpParserError("the requests that wait are too large")
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        if not self.pipeline:
            self._pipelined_bytes = 0
        super()._start_asgi_task(cycle, without_chunks(app, cycle) if cycle.scope["http_version"] < "1.1" else app)

    def on_response_complete(self) -> None:
        self._buffers.add(-self._sizes.popleft())
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to bytes that are not HTTP, or are too many before a body begins, or for which there is no room;
        the end of the connection. While the answer to another request is on its way it cannot be said."""
        status, message, kind, code = 400, "the request is not valid HTTP", INVALID, None
        if self._no_room:
            status, message = 429, "the server is busy: it holds as many bytes of requests and answers as it may"
            kind, code = "rate_limit_error", "buffers_full"
        elif self._too_large():
            status, message = 431, (f"the request line and headers are more than {MAX_HEADER_BYTES} bytes or "
                                    f"{MAX_HEADERS} headers")
        now = self._answered
        if now is not None and not now.response_complete:
            if now is not self.cycle or not now.more_body or now.response_started:
                return self._hang_up()
            now.scope[CUT_SHORT] = status  # type: ignore[literal-required]
            self._tell_that_client_is_gone()  # as to its own body: this is the answer
        body = msgspec.json.encode(error_body(message, kind, code=code))
        self.transport.write(b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                             b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), body))
        self._linger()

    def _linger(self) -> None:
        """Close when the client does, or soon. It may be sending still, and what comes after a close is answered with a
        reset, which takes away what the client has not read."""
        self._lingers = True
        self._release()  # what came is not kept, and what comes is not either
        self.flow.resume_reading()  # or it would not be seen to close
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_SECONDS)

    def _hang_up(self) -> None:
        self._tell_that_client_is_gone()  # at once: nothing can be sent any more
        self.transport.close()

    def _tell_that_client_is_gone(self) -> None:
        """As far as whoever answers can tell."""
        self.pipeline.clear()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _too_large(self) -> bool:
        return self._header_bytes > MAX_HEADER_BYTES or self._num_headers > MAX_HEADERS

    def _spend(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        self._hold(num_bytes)
        if self._too_large():
            raise httptools.HttpParserError("headers are too large")  # the parser stops, and send_400_response is next

    def _expect(self, announced: bytes) -> None:
        """A body of this length: better refused before it comes than when it is nearly here."""
        if announced.isdigit() and len(announced) <= 18:
            size = min(int(announced), self._buffers.max_request)
            self._no_room = size > SMALL_REQUEST and not self._buffers.has_room(size)
        if self._no_room:
            raise httptools.HttpParserError("no room")

    def _hold(self, num_bytes: int) -> None:
        """Count bytes of the newest request. One that is small may always come: it may be a probe."""
        if not self._sizes:  # answered already, without its body
            return
        num_bytes = min(num_bytes, self._buffers.max_request - self._sizes[-1])
        self._sizes[-1] += num_bytes
        self._buffers.add(num_bytes)
        self._no_room = self._sizes[-1] > SMALL_REQUEST and not self._buffers.has_room()
        if self._no_room:
            raise httptools.HttpParserError("no room")

    def _release(self) -> None:
        """Hold nothing of any request any more."""
        self._buffers.add(-sum(self._sizes))
        self._sizes.clear()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """An application for a client of HTTP/1.0, which knows no chunks (RFC 9112, section 6.1): where uvicorn would send
    some, as the length is not known, the end of the connection ends the body."""

    async def answered(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        unframed = False

        async def plain(message: ASGISendEvent) -> None:
            nonlocal unframed
            if message["type"] == "http.response.start":
                unframed = all(name != b"content-length" for name, _ in message.get("headers", ()))
                if unframed:
                    cycle.keep_alive = cycle.chunked_encoding = False
            elif unframed and message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))  # as long as it turns out to be
            await send(message)

        await app(scope, receive, plain)

    return answered
