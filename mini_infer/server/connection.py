"""A connection that brings its requests in time, their headers within limits, and gets its refusals in the form of all
others."""

from __future__ import annotations

import asyncio

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mini_infer.server.errors import error_body
from mini_infer.server.limits import BODY_SECONDS, HEADER_SECONDS, MAX_HEADER_BYTES, MAX_HEADERS

_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class Connection(HttpToolsProtocol):
    """uvicorn's, which has no limit of its own on headers, or on the time that they and a body take."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_bytes = 0
        self._num_headers = 0
        self._began = False  # in the data that is being read
        self._in_headers = True  # they are awaited, or on their way
        self._timer: asyncio.TimerHandle | None = None  # while headers or a body are awaited
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._began = False
        super().data_received(data)
        # The parser collects a header before it shows it, so what it has not shown is counted here.
        if self._in_headers and not self._began and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._too_large():
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = True
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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to bytes that are not HTTP, or are too many before a body begins; the end of the connection."""
        status, message = 400, "the request is not valid HTTP"
        if self._too_large():
            status, message = 431, (f"the request line and headers are more than {MAX_HEADER_BYTES} bytes or "
                                    f"{MAX_HEADERS} headers")
        body = msgspec.json.encode(error_body(message))
        self.transport.write(b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                             b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), body))
        self.transport.close()

    def _too_large(self) -> bool:
        return self._header_bytes > MAX_HEADER_BYTES or self._num_headers > MAX_HEADERS

    def _spend(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._too_large():
            raise httptools.HttpParserError("headers are too large")  # the parser stops, and send_400_response is next

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
