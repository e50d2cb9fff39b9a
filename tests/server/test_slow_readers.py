"""Clients that read slowly, or not at all: what waits for them is bounded, and so is the time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from mini_infer.engine.streams import OutputStream
from mini_infer.server import launch
from mini_infer.server.buffers import Buffers
from mini_infer.server.sse import DONE, EventStream, event
from mini_infer.text.output import CompletionDelta
from tests.server.connected import serve


async def ask(port: int) -> socket.socket:
    """A request whose answer has little room until it is read."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return sock


async def test_what_waits_is_the_answer_and_no_more() -> None:
    """Four completions of which nothing is read: a piece for each waits, beside what the connection holds at most."""
    n, text = 4, "some words that are not read "
    buffers = Buffers(10**9, 60_000)
    outputs: list[OutputStream] = []
    largest = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        output = OutputStream(n, lambda output: None)
        output.request_ids = list(range(n))
        outputs.append(output)

        async def events() -> AsyncIterator[bytes]:
            nonlocal largest
            async for deltas in output:
                data = b"".join(event({"index": delta.index, "text": delta.text}) for delta in deltas)
                if len(outputs) == 1:
                    largest = max(largest, len(data))
                yield data
            yield DONE

        await EventStream(events())(scope, receive, send)

    async with serve(app, buffers) as port:
        sock = await ask(port)
        while not outputs:
            await asyncio.sleep(0.001)
        [output] = outputs
        steps = 0

        def step(reason: str | None = None) -> None:
            for i in range(n):
                output.put(i, CompletionDelta(i, text, [7], finish_reason=reason))

        while buffers.size < HIGH_WATER_LIMIT:  # the kernel holds some megabytes as well
            for _ in range(500):
                step()
                await asyncio.sleep(0)
                steps += 1
        assert buffers.size <= HIGH_WATER_LIMIT + largest + 100  # the request
        for more in range(1, 4001):
            step()
            if more % 100 == 0:
                await asyncio.sleep(0)
                assert buffers.size <= HIGH_WATER_LIMIT + largest + 100
                assert sorted(output._pending) == list(range(n))
                assert all(len(delta.text) <= len(text) * (steps + more) for delta in output._pending.values())
        waiting = sum(len(delta.text) for delta in output._pending.values())
        assert waiting >= n * 3900 * len(text)
        step("stop")
        received = bytearray()
        while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            received += data
        sock.close()
        assert buffers.size == 0 and not output._pending
    texts = [""] * n
    for line in received.decode().split("\r\n"):
        for part in line.split("\n\n"):
            if part.startswith("data: {"):
                chunk = json.loads(part[6:])
                texts[chunk["index"]] += chunk["text"]
    assert texts == [text * (steps + 4001)] * n


async def test_one_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes a little now and then is not."""
    monkeypatch.setattr(launch, "READER_SECONDS", 1)
    left: list[tuple[str, int]] = []  # the clients whose streams are over

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 100_000
            finally:
                left.append(scope["client"])

        await EventStream(events())(scope, receive, send)

    loop = asyncio.get_running_loop()
    buffers = Buffers(10**9, 60_000)
    async with serve(app, buffers) as port:
        slow, still = await ask(port), await ask(port)
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert await loop.sock_recv(slow, 1 << 20)
            if left:
                break
        assert left == [still.getsockname()]
        slow.close()
        still.close()
        while len(left) < 2:
            await asyncio.sleep(0.01)
    assert buffers.size == 0
