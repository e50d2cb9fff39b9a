"""What every request passes on its way to a route: the size its body says it has, its API key, its name for itself.

Raw ASGI, as these run for each request of each stream. What is refused here is answered in the form of all errors.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mini_infer.server.errors import RefusedError, error_body, error_response
from mini_infer.server.limits import MAX_ID_CHARS

OPEN_PATHS = ("/health", "/healthz", "/")  # a probe has no key, and the page asks for it
OPEN_PREFIX = "/web/"  # the page's files
REQUEST_ID = b"x-request-id"
THROW_AWAY_BYTES = 64 * 2**20  # of a body that is too large
THROW_AWAY_SECONDS = 5.0


class BodyLimit:
    """413 for a body of more than `max_size` bytes, whether it announces its length or not. None of it is kept.

    What the client still sends is read first, within limits, as many clients read no answer before they are done.
    """

    def __init__(self, app: ASGIApp, max_size: int):
        self._app = app
        self._max_size = max_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced, waits = b"0", False
        for name, value in scope["headers"]:
            if name == b"content-length":
                announced = value
            elif name == b"expect":  # such a client sends nothing before it is told to go on
                waits = True
        if len(announced) > 18 or not announced.isdigit() or int(announced) > self._max_size:
            refusal = await self._refuse(receive, waits)
            return await error_response(scope, 413, refusal.body, refusal.headers)(scope, receive, send)
        left = self._max_size

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                if left < 0:
                    raise await self._refuse(receive, not message.get("more_body", False))
            return message

        await self._app(scope, limited, send)

    async def _refuse(self, receive: Receive, all_read: bool) -> RefusedError:
        try:
            ended = all_read or await asyncio.wait_for(_throw_away(receive), THROW_AWAY_SECONDS)
        except asyncio.TimeoutError:
            ended = False
        message = f"the request body is larger than {self._max_size} bytes"
        return RefusedError(413, message, code="request_too_large", headers=None if ended else {"connection": "close"})


async def _throw_away(receive: Receive) -> bool:
    """Read the rest of a body; whether it came to its end."""
    left = THROW_AWAY_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return True
    return False


class ApiKeys:
    """401 unless a request has one of the keys, as `Authorization: Bearer KEY` (OpenAI's way) or `X-API-Key: KEY`
    (Anthropic's). Health is open to all, and so is the page, which has nothing in it before somebody enters a key.

    The time of the comparison does not depend on what two keys have in common.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or self._has_key(scope):
            return await self._app(scope, receive, send)
        body = error_body("this server needs an API key: send Authorization: Bearer KEY", "authentication_error",
                          code="invalid_api_key")
        await error_response(scope, 401, body, {"www-authenticate": "Bearer"})(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        offered = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, token = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    offered = token.strip()
                    break
            elif name == b"x-api-key":
                offered = value.strip()
        digest = sha256(offered).digest()
        found = False
        for known in self._digests:  # all of them, always
            found |= secrets.compare_digest(digest, known)
        return found


class Heads:
    """HEAD wherever there is GET: the same head, and not the body, of which a stream would make more and more."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        ended = False

        async def head(message: Message) -> None:
            nonlocal ended
            if ended:
                return
            ended = message["type"] == "http.response.body"
            await send({"type": "http.response.body"} if ended else message)  # whose end a stream sees as the client's

        await self._app({**scope, "method": "GET"}, receive, head)


class RequestIdHeaders:
    """Answers carry the client's X-Request-Id, or one made here. A client may use one as often as it likes."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        header = (REQUEST_ID, (client_request_id(scope) or uuid.uuid4().hex).encode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, named)


def client_request_id(scope: Scope) -> str | None:
    """The request's X-Request-Id, where it is short and printable."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and 0 < len(value) <= MAX_ID_CHARS:
            text = value.decode("latin-1")
            return text if text.isascii() and text.isprintable() else None
    return None
