"""Server-sent events over raw ASGI: one `send` per batch of events, and an end as soon as the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mini_infer.server.errors import CUT_SHORT, ClientGoneError, body_of

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
DIRECT = "mini_infer.send"  # in a scope: what the `send` of a route comes to, through layers that only look at heads
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
           (b"x-accel-buffering", b"no")]  # the last one: nginx must not hold events back


def event(value: Any) -> bytes:
    """One `data:` event with `value` as JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """The same, of an event with a name of its own."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))


def error_event(status: int, body: dict[str, Any]) -> bytes:
    """How OpenAI's streams end with an error."""
    return event(body) + DONE


class EventStream(Response):
    """Sends what `events` yields (bytes of whole events) until it ends or the client goes away.

    The first item is awaited before the status line goes out, so a request that is refused by the engine still gets its
    4xx or 5xx; of an error after that `last_words` makes the last event. `events` is closed in every case, which
    aborts what it was reading from.
    """

    def __init__(self, events: AsyncIterator[bytes],
                 last_words: Callable[[int, dict[str, Any]], bytes] = error_event):
        self.status_code = 200
        self.background = None
        self._events = events
        self._last_words = last_words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await until_gone(receive, self._run(scope, send))

    async def _run(self, scope: Scope, send: Send) -> None:
        events = self._events
        try:
            first = await anext(events, DONE)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            send = scope.get(DIRECT, send)  # a coroutine less in each layer, for each token
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                scope[CUT_SHORT], body = body_of(error)
                words = self._last_words(scope[CUT_SHORT], body)
                await send({"type": "http.response.body", "body": words, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await events.aclose()  # type: ignore[attr-defined]


async def until_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """The result of `work`, cancelled when the client disconnects first (then raises ClientGoneError)."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for pending in (task, watch):
            if not pending.done():
                pending.cancel()
                with suppress(asyncio.CancelledError):
                    await pending


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
