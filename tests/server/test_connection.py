"""Connections by themselves: how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from mini_infer.server import connection
from mini_infer.server.buffers import Buffers
from mini_infer.server.limits import MAX_PIPELINED
from tests.server.connected import App, serve
from tests.server.running import Running


@pytest.fixture
def answers() -> list[str]:
    """What /wait was told, once its client had sent its request."""
    return []


@pytest.fixture
def buffers() -> Buffers:
    return Buffers(6_000_000, 60_000)


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch, answers: list[str], buffers: Buffers) -> AsyncIterator[int]:
    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await receive()
            message = await receive()
            answers.append(f"{scope['path']}: {message['type']}")
        else:
            await asyncio.sleep(0.3)  # longer than headers may take here: an answer has all the time that it needs
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})

    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    async with serve(hello, buffers) as number:
        yield number


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_headers_have_a_time(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_body_has_a_time(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(head + b"bo")
        await asyncio.sleep(0.05)
        writer.write(b"dy")
        assert (await asyncio.wait_for(reader.readuntil(b"hi"), 5)).startswith(b"HTTP/1.1 200")
    writer.write(head + b"bo")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_those_that_come_may_wait(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"hi"), 5)).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HT")  # the next request has the same time
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def first_of(answers: list[str]) -> list[str]:
    """The answers, as soon as there is one."""
    for _ in range(1000):
        if answers:
            break
        await asyncio.sleep(0.02)
    return answers


PIECES = (b"one", b"", b"two", b"x" * 70_000)


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """The pieces; on other paths than /, their length is said before."""
    headers = [] if scope["path"] == "/" else [(b"content-length", b"%d" % sum(map(len, PIECES)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class TestOldClients:
    """HTTP/1.0 knows no chunks: a body whose length is not known is as it is, and ends with its connection."""

    async def ask(self, buffers: Buffers, head: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer, up to the end of the connection."""
        async with serve(stream, buffers) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b"\r\n\r\n")
            found, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
            writer.close()
            return found.lower(), body

    @pytest.mark.parametrize("path", [b"/", b"/known"])
    @pytest.mark.parametrize("more", [b"", b"\r\nConnection: keep-alive"])
    async def test_a_body_has_no_frame(self, buffers: Buffers, path: bytes, more: bytes) -> None:
        head, body = await self.ask(buffers, b"GET %b HTTP/1.0%b" % (path, more))
        assert body == b"".join(PIECES)
        assert b"transfer-encoding" not in head and head.count(b"connection: close") == 1
        assert (b"content-length" in head) == (path != b"/")

    async def test_a_head_has_no_body(self, buffers: Buffers) -> None:
        assert (await self.ask(buffers, b"HEAD / HTTP/1.0"))[1] == b""

    async def test_newer_ones_get_chunks(self, buffers: Buffers) -> None:
        head, body = await self.ask(buffers, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close")
        assert b"transfer-encoding: chunked" in head and body.startswith(b"3\r\none\r\n3\r\ntwo\r\n")


class TestPipelines:
    """Requests that come before the one before is answered."""

    async def test_answers_come_in_order(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for _ in range(3):
            assert (await asyncio.wait_for(reader.readuntil(b"hi"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()

    @pytest.mark.parametrize("many", [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_PIPELINED + 2),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 9999999],
        ids=["requests", "bytes"])
    async def test_only_so_many_wait(self, port: int, many: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(many)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    async def test_what_is_no_request_does_not_stand_in_an_answer(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()

    @pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"])
    async def test_an_answer_ends_with_its_client(self, port: int, answers: list[str], more: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + more)
        await asyncio.sleep(0.05)
        writer.close()
        assert await first_of(answers) == ["/wait: http.disconnect"]

    async def test_one_that_comes_late_does_not_hide_that_its_client_goes(self, port: int, answers: list[str]) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for more in (b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"POST / HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000):
            writer.write(more)
            await asyncio.sleep(0.05)
        writer.close()
        assert await first_of(answers) == ["/wait: http.disconnect"]


class TestBuffers:
    """Of all connections together."""

    HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    @pytest.fixture
    def disconnected(self) -> list[str]:
        """The paths of requests whose client went away."""
        return []

    @pytest.fixture
    def app(self, disconnected: list[str]) -> App:
        """/large answers with 8 MB at once, other paths with the size of the body that they got."""
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            size, more = 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return disconnected.append(scope["path"])
                size, more = size + len(message["body"]), message["more_body"]
            body = b"x" * 8_000_000 if scope["path"] == "/large" else b"%d bytes" % size
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if scope["path"] == "/large" and (await receive())["type"] == "http.disconnect":
                disconnected.append(scope["path"])

        return app

    @pytest.fixture
    def buffers(self) -> Buffers:
        return Buffers(150_000, 60_000)

    @pytest.fixture
    async def small_port(self, app: App, buffers: Buffers) -> AsyncIterator[int]:
        async with serve(app, buffers) as port:
            yield port

    async def send(self, port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        await asyncio.sleep(0.05)
        return reader, writer

    async def test_bodies_have_room_or_are_refused(self, small_port: int, buffers: Buffers) -> None:
        waiting = [await self.send(small_port, self.HEAD % 60_000 + b"x" * 55_000) for _ in range(2)]
        assert 110_000 < buffers.size < 112_000
        refused = []  # whose clients do not close their side
        for head in (self.HEAD % 60_000, self.HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") +
                     b"c350\r\n" + b"x" * 50_000):  # 50,000 in hexadecimal
            refused.append(await self.send(small_port, head))
            answer = await asyncio.wait_for(refused[-1][0].read(), 5)
            assert answer.startswith(b"HTTP/1.1 429") and b"retry-after: 1" in answer and b'"buffers_full"' in answer
            assert buffers.size < 112_000
        reader, _ = await self.send(small_port, self.HEAD % 5 + b"small")
        assert b"5 bytes" in await asyncio.wait_for(reader.readuntil(b"bytes"), 5)
        for reader, writer in waiting:
            writer.write(b"x" * 5_000)
            assert b"60000 bytes" in await asyncio.wait_for(reader.readuntil(b"bytes"), 5)
        assert buffers.size < 1000
        reader, writer = await self.send(small_port, self.HEAD % 60_000 + b"x" * 60_000)
        assert b"60000 bytes" in await asyncio.wait_for(reader.readuntil(b"bytes"), 5)

    async def test_those_that_leave_leave_nothing(self, small_port: int, buffers: Buffers,
                                                  disconnected: list[str]) -> None:
        for _, writer in [await self.send(small_port, self.HEAD % 60_000 + b"x" * 55_000) for _ in range(2)]:
            writer.transport.abort()
        await asyncio.sleep(0.05)
        assert buffers.size == 0 and disconnected == ["/", "/"]

    async def test_what_is_thrown_away_is_not_counted(self, small_port: int, buffers: Buffers) -> None:
        await self.send(small_port, self.HEAD % 10_000_000 + b"x" * 5_000_000)
        assert buffers.size == 60_000

    async def test_the_slowest_reader_goes(self, app: App, disconnected: list[str]) -> None:
        limit = 10**9
        for num_readers, left in ((1, 1), (2, 1)):
            buffers = Buffers(limit, 60_000)
            async with serve(app, buffers) as port:
                writers = [(await self.send(port, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"))[1]
                           for _ in range(num_readers)]
                assert disconnected == ["/large"] * (num_readers - left)
                assert 0 < buffers.size <= limit
                limit = buffers.size * 3 // 2  # room for the answer to one, not to two
                for writer in writers:
                    writer.transport.abort()
                await asyncio.sleep(0.05)
                assert buffers.size == 0
            disconnected.clear()

    def test_the_flag_reaches_connections(self, small_model: Path) -> None:
        head = self.HEAD.replace(b"/", b"/v1/completions", 1)
        chunked = head.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
        with Running(small_model, "--dry-run", "--dry-gpu", "free", "--max-body-size", "60kB", "--max-buffered-size",
                     "100kB") as server, socket.create_connection(("127.0.0.1", server.port)) as waiting:
            waiting.sendall(head % 50_000 + b"x" * 49_000)
            server.eventually("requests_received_total", 1)
            with socket.create_connection(("127.0.0.1", server.port)) as other:
                other.sendall(head % 60_000)
                assert other.recv(100).startswith(b"HTTP/1.1 429")
            with socket.create_connection(("127.0.0.1", server.port)) as other:
                other.sendall(chunked + b"ffffff\r\n")
                with suppress(ConnectionError):
                    other.sendall(b"x" * 4_000_000)
                assert other.recv(100).startswith(b"HTTP/1.1 429")
            server.eventually("requests_ended_total", 1)  # what the first one brings is not counted before it ends
            assert 'outcome="refused"} 1.0' in server.get("/metrics")[1]
            late = [b"GET / HTTP/1.1\r\n", b"x" * 60_000, b"\0" * 10_000]  # noise when it is nearly too large as well
            for noise in ([b"nonsense\r\n\r\n"], late, [chunked + b"no"]):
                with socket.create_connection(("127.0.0.1", server.port)) as other:
                    for data in noise:
                        other.sendall(data)
                        time.sleep(0.05)
                    assert other.recv(100).startswith(b"HTTP/1.1 400")
            server.eventually("requests_ended_total", 2)
            assert 'outcome="refused"} 2.0' in server.get("/metrics")[1]
            waiting.close()
            server.eventually("requests_ended_total", 3)
            upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" \
                      b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.port)) as other:
                other.sendall(upgrade)
                assert other.recv(100).startswith(b"HTTP/1.1 200")  # the page: there is nothing to upgrade to
            num_lines = len(server.log)
        assert server.log[num_lines:] == ["mini-infer: stopping\n"]  # anybody could fill it
