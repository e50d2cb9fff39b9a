"""Who ends the server, and starts the engine again: signals, a dead engine and a hanging one all come together here."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from mini_infer.config import ConfigError
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.protocol import EngineInfo
from mini_infer.server.errors import DrainingError
from mini_infer.server.launch import ServeOptions, log
from mini_infer.server.lifecycle import Lifecycle

WATCH_SECONDS = 0.5
RESTART_WINDOW = 3600.0  # seconds in which --restart-engine counts
FLUSH_SECONDS = 2.0  # for answers that were cut to reach their clients
LAST_WORDS_SECONDS = 1.0  # in which a server without an engine says so, to probes and to clients that try again


class Supervisor:
    """`watch` returns when the server should end, with its exit status. `on_restart` hears of a new engine."""

    def __init__(self, options: ServeOptions, llm: AsyncLLM, life: Lifecycle,
                 on_restart: Callable[[EngineInfo], None]):
        self._options = options
        self._llm = llm
        self._life = life
        self._on_restart = on_restart
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._restarts: deque[float] = deque()  # when

    def stop(self) -> None:
        """Take no more requests, and end when those that run have finished; the second time, end at once."""
        if self._stopping.is_set():
            self._forced.set()
            return
        log("stopping; running requests may finish" if self._life.active else "stopping")
        self._life.draining = True
        self._stopping.set()

    async def watch(self) -> int:
        """0 after an orderly end, 1 when the engine is gone or requests were cut by a second signal."""
        stalled = False
        while True:
            await _any(self._stopping, self._llm.lost, seconds=WATCH_SECONDS)
            if self._stopping.is_set():
                return await self._drain()
            if self._llm.lost.is_set() and not await self._revive():
                return await self._give_up()
            if self._llm.stalled != stalled:
                stalled = self._llm.stalled
                log("the engine makes no progress" if stalled else "the engine goes on")
                if stalled and self._options.restart_engine:
                    self._llm.kill()

    async def _drain(self) -> int:
        await _any(self._life.idle, self._forced, seconds=self._options.shutdown_timeout)
        if not self._life.idle.is_set() and not self._forced.is_set():
            self._llm.fail_all(DrainingError())
            await _any(self._life.idle, self._forced, seconds=FLUSH_SECONDS)
        return 1 if self._forced.is_set() or self._llm.lost.is_set() else 0

    async def _revive(self) -> bool:
        """Start the engine again. False when that was done too often, or it does not come up."""
        self._life.restarting = True
        try:
            while self._may_restart():
                log(f"{self._llm.error}; starting it again")
                restart = asyncio.ensure_future(self._llm.restart())
                stopping = asyncio.ensure_future(self._stopping.wait())
                await asyncio.wait((restart, stopping), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not restart.done():
                    restart.cancel()
                    await asyncio.wait((restart,))
                    return True  # there is something else to do than to serve
                try:
                    info = restart.result()
                except (EngineDeadError, ConfigError) as error:
                    log(str(error))
                    continue
                self._on_restart(info)
                log("the engine is there again")
                return True
            return False
        finally:
            self._life.restarting = False

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW:
            self._restarts.popleft()
        if len(self._restarts) >= self._options.restart_engine:
            return False
        self._restarts.append(now)
        return True

    async def _give_up(self) -> int:
        log(f"{self._llm.error}; ending")
        await _any(self._stopping, seconds=LAST_WORDS_SECONDS)
        await _any(self._life.idle, self._stopping, seconds=FLUSH_SECONDS)
        return 1


async def _any(*events: asyncio.Event, seconds: float) -> None:
    """Wait until one of them is set, or the time is over."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
