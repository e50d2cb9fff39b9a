"""Whether the server takes requests: the one place that knows, asked by every request and by the health routes."""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.streams import QueueFullError
from mini_infer.server.errors import DrainingError, body_of, error_response
from mini_infer.server.sse import DIRECT
from mini_infer.server.tally import Tally

GENERATING_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


class Lifecycle:
    """Counts the requests for generation that are being answered, and in `tally` what becomes of them.

    `max_concurrent`: as many as may be answered at a time; None: any number.
    """

    def __init__(self, llm: AsyncLLM, tally: Tally, max_concurrent: int | None = None):
        self._llm = llm
        self._max_concurrent = max_concurrent
        self.draining = False  # told to stop: what runs may finish
        self.restarting = False  # the engine has ended and is being started again
        self.active = 0
        self.tally = tally
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def state(self) -> str:
        """ "ok", "draining", "restarting", "error" (the engine is gone) or "stalled" (it makes no progress)."""
        if self.draining:
            return "draining"
        if self._llm.error is not None:
            return "restarting" if self.restarting else "error"
        return "stalled" if self._llm.stalled else "ok"

    @property
    def alive(self) -> bool:
        """Whether there is hope; an orchestrator starts the server anew where there is none."""
        return (self._llm.error is None and not self._llm.stalled) or self.restarting

    def check(self) -> None:
        """Raises DrainingError, EngineDeadError or QueueFullError when no request can be taken."""
        if self.draining:
            raise DrainingError
        if self._llm.error is not None:
            raise self._llm.error
        if self._max_concurrent is not None and self.active >= self._max_concurrent:
            raise QueueFullError(f"the server is busy: it answers {self._max_concurrent} requests, as many as it may")
        self._llm.check_queue()

    def enter(self) -> None:
        self.active += 1
        self.idle.clear()

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.idle.set()


class Turns:
    """Lets one task go on in each pass of the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False  # in this pass

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its task was cancelled
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False


class Turnstile:
    """Raw ASGI: turns requests for generation away while they cannot be taken, before their bodies are read, and counts
    those that go through until they are answered.

    To begin with a request takes as long as to write the tokens of thirty. Where many come at once they begin one by
    one, and between them whatever else is ready has its turn: the tokens of those that run.
    """

    def __init__(self, app: ASGIApp, life: Lifecycle):
        self._app = app
        self._life = life
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" \
                or scope["path"].removeprefix(scope.get("root_path", "")) not in GENERATING_PATHS:
            return await self._app(scope, receive, send)
        life = self._life
        with life.tally.visit(scope, send) as visit:
            try:
                life.check()
            except Exception as error:
                return await error_response(scope, *body_of(error))(scope, receive, visit.send)
            visit.let_in = True
            scope[DIRECT] = visit.send
            life.enter()
            try:
                await self._turns.wait()
                await self._app(scope, receive, visit.send)
            finally:
                life.leave()
