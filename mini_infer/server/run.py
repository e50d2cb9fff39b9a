"""The event loop of the front: wait for the engine, serve with uvicorn, end in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.server.app import create_app
from mini_infer.server.front import Front
from mini_infer.server.launch import ServeOptions, log
from mini_infer.server.metrics import ServerMetrics, Source


class Server(uvicorn.Server):
    """uvicorn that says when it listens, and without its signal handlers, which would end the process by the signal
    instead of an exit status."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]):
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(options: ServeOptions, sock: socket.socket, llm: AsyncLLM, start: float) -> int:
    """Serve on `sock` until told to stop. 0 after an orderly end, 1 when the engine could not start.

    Raises ConfigError when the engine says that the configuration cannot work.
    """
    try:
        return uvloop.run(_serve(options, sock, llm, start))
    except EngineDeadError as error:
        log(str(error))
        return 1


async def _serve(options: ServeOptions, sock: socket.socket, llm: AsyncLLM, start: float) -> int:
    metrics = ServerMetrics()
    llm.observe(metrics)
    starting = asyncio.ensure_future(llm.start())
    server: Server | None = None

    def stop() -> None:
        """First: finish what runs. Second: do not wait for it."""
        if server is None:
            starting.cancel()
        elif server.should_exit:
            server.force_exit = True
        else:
            log("stopping; running requests may finish")
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        info = await starting
    except asyncio.CancelledError:
        return 0
    front = Front(llm, options.model_names, metrics)
    metrics.attach(Source(options.model_names[0], info, llm.stats))

    def ready() -> None:
        host, port = sock.getsockname()[:2]
        log(f"{options.model_names[0]} on {info.device}, {info.dtype}, context {info.max_model_len}, "
            f"{info.num_blocks} KV blocks of {info.block_size}")
        log(f"ready in {time.perf_counter() - start:.2f} s: http://{f'[{host}]' if ':' in host else host}:{port}")

    server = Server(uvicorn.Config(
        create_app(front), http="httptools", ws="none", lifespan="off", log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=options.shutdown_timeout), ready)
    try:
        await server.serve(sockets=[sock])
    finally:
        await llm.close()
    return 0
