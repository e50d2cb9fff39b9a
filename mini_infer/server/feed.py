"""What the page sees of the engine: server-sent events, ten a second at most, for as long as somebody watches.

Nothing of it is computed while nobody does. Watchers share one look at the engine; one who is slow misses some of the
looks and holds nobody up. What a look cost decides when the next one comes, so that making looks takes at most a fifth
of a per cent of the engine's time, however many requests and blocks there are to look at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.protocol import EngineView
from mini_infer.server.metrics import Histogram, ServerMetrics
from mini_infer.server.sse import EventStream, named_event

INTERVAL = 0.1  # seconds between two looks, at least
PAUSE_PER_COST = 500  # and this many times as long as the engine took for the last one
MAX_WATCHERS = 16
EVENTS_PATH = "/v1/engine/events"


class Recent:
    """The mean of what a histogram observed since it was last asked."""

    def __init__(self, histogram: Histogram):
        self._histogram = histogram
        self._count, self._sum = histogram.totals()

    def mean(self) -> float | None:
        count, total = self._histogram.totals()
        new, added = count - self._count, total - self._sum
        self._count, self._sum = count, total
        return added / new if new else None


class Feed:
    """Looks at the engine for its watchers. To be used on the event loop only.

    `interval`: seconds between two looks, at least. `pause_per_cost`: how many times as long as making the last look
    took the engine the pause before the next one is, at least.
    """

    def __init__(self, llm: AsyncLLM, metrics: ServerMetrics, interval: float = INTERVAL,
                 pause_per_cost: float = PAUSE_PER_COST):
        self._llm = llm
        self._metrics = metrics
        self._interval = interval
        self._pause_per_cost = pause_per_cost
        self._num_watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._frame = b""  # the newest look, as an event
        self._number = 0  # of the newest look
        self._news = asyncio.Event()  # a look later than the one that its waiter has seen; a new one for each look
        self._error: EngineDeadError | None = None
        self._closed = False

    @property
    def num_watchers(self) -> int:
        return self._num_watchers

    @property
    def num_looks(self) -> int:
        return self._number

    def close(self) -> None:
        """End all streams: the server is about to stop and waits for whoever is connected."""
        self._closed = True
        self._news.set()

    async def events(self) -> AsyncIterator[bytes]:
        """`engine` once, then `view` with each look and `ended` with the sequences that ended since the one before.

        Raises HTTPException (429) when there are MAX_WATCHERS already, EngineDeadError when the engine is gone.
        """
        if self._num_watchers == MAX_WATCHERS:
            raise HTTPException(429, f"{MAX_WATCHERS} watch the engine already")
        self._num_watchers += 1
        seen, change = self._number, 0
        try:
            if self._looking is None or self._looking.done():
                self._error = None
                self._looking = asyncio.create_task(self._look())
            yield named_event("engine", self._engine())
            while not self._closed:
                if self._number == seen:
                    await self._news.wait()
                    continue
                if self._error is not None:
                    raise self._error
                seen = self._number
                ended = self._llm.history.since(change)
                change = self._llm.history.last_change
                yield self._frame + (named_event("ended", ended) if ended else b"")
        finally:
            self._num_watchers -= 1
            if self._num_watchers == 0:
                await self._look_away()

    async def _look(self) -> None:
        first_token = Recent(self._metrics.time_to_first_token)
        inter_token = Recent(self._metrics.inter_token)
        while True:
            try:
                view = await self._llm.look()
                self._frame = frame(view, first_token.mean(), inter_token.mean())
                pause = max(self._interval, self._pause_per_cost * view.cost)
            except EngineDeadError as error:
                self._error, pause = error, self._interval
            self._number += 1
            news, self._news = self._news, asyncio.Event()
            news.set()
            if self._error is not None or self._closed:
                return
            await asyncio.sleep(pause)

    async def _look_away(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            self._llm.look_away()

    def _engine(self) -> dict[str, Any]:
        """What does not change while the engine lives."""
        info = self._llm.info
        names = ("architecture", "device", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
                 "block_size", "num_blocks", "pipeline_depth")
        return {**{name: info.__dict__[name] for name in names}, "simulated": self._llm.sim is not None,
                "time": time.monotonic()}


def frame(view: EngineView, first_token: float | None, inter_token: float | None) -> bytes:
    """A look as an event. The latencies are seconds, means since the look before, None if nothing was measured."""
    return named_event("view", {"view": view, "time_to_first_token": first_token, "inter_token": inter_token})


def feed_routes(feed: Feed) -> APIRouter:
    router = APIRouter()

    @router.get(EVENTS_PATH, summary="What the engine is doing, as server-sent events")
    async def engine_events() -> Response:
        return EventStream(feed.events())

    return router
