"""The event loop of the front: wait for the engine, serve with uvicorn, end in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
import uvloop
from fastapi import FastAPI

from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.client import EngineDeadError
from mini_infer.engine.garbage import settle_memory
from mini_infer.server.app import create_app
from mini_infer.server.buffers import Buffers
from mini_infer.server.connection import Connection
from mini_infer.server.feed import Feed
from mini_infer.server.front import Front
from mini_infer.server.launch import ServeOptions, log
from mini_infer.server.lifecycle import Lifecycle
from mini_infer.server.metrics import ServerMetrics, Source
from mini_infer.server.supervisor import Supervisor

CLOSE_SECONDS = 1  # for connections, when all requests are through


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
    """Serve on `sock` until told to stop. 0 after an orderly end; 1 when the engine could not start or is gone, or when
    requests were cut by a second signal.

    Raises ConfigError when the engine says that the configuration cannot work.
    """
    try:
        return uvloop.run(_serve(options, sock, llm, start))
    except EngineDeadError as error:
        log(str(error))
        return 1


async def _serve(options: ServeOptions, sock: socket.socket, llm: AsyncLLM, start: float) -> int:
    metrics = ServerMetrics()
    feed = Feed(llm, metrics)
    llm.observe(metrics)
    life = Lifecycle(llm, metrics.requests, options.max_concurrent_requests)
    starting = asyncio.ensure_future(llm.start())
    supervisor = Supervisor(options, llm, life, lambda info: metrics.attach(Source(options.model_names[0], info,
                                                                                   llm.stats)))

    def stop() -> None:
        if not starting.done():
            starting.cancel()
            return
        supervisor.stop()
        feed.close()  # watchers would stay

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        info = await starting
    except asyncio.CancelledError:
        return 0
    front = Front.of(options, llm, metrics, feed, life)
    metrics.attach(Source(options.model_names[0], info, llm.stats))
    app = create_app(front)
    end_traces = _send_traces(options, llm, app)

    def ready() -> None:
        settle_memory()
        host, port = sock.getsockname()[:2]
        scheme = "http" if options.ssl_certfile is None else "https"
        log(f"{options.model_names[0]} on {info.device}, {info.dtype}, context {info.max_model_len}, "
            f"{info.num_blocks} KV blocks of {info.block_size}")
        log(f"ready in {time.perf_counter() - start:.2f} s: {scheme}://{f'[{host}]' if ':' in host else host}:{port}")

    buffers = Buffers(options.max_buffered_size, options.max_body_size)
    server = Server(uvicorn.Config(
        app, http=partial(Connection, buffers),  # type: ignore[arg-type]  # it calls what it says is a class
        ws="none", lifespan="off", access_log=False, server_header=False,
        log_level="error",  # a warning for each piece of bytes that is not HTTP would let anybody fill the log
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_certfile=options.ssl_certfile, ssl_keyfile=options.ssl_keyfile, ssl_ca_certs=options.ssl_ca_certs,
        ssl_cert_reqs=options.ssl_cert_reqs), ready)
    serving, watching = asyncio.ensure_future(server.serve(sockets=[sock])), asyncio.ensure_future(supervisor.watch())
    try:
        await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()  # it could not even begin
        status = watching.result()
        server.should_exit = True
        server.force_exit = status != 0
        await serving
    finally:
        await llm.close()
        end_traces()
    return status


def _send_traces(options: ServeOptions, llm: AsyncLLM, app: FastAPI) -> Callable[[], None]:
    """Traces where they are asked for. Returns what sends the last of them."""
    if options.otlp_traces_endpoint is None:
        return lambda: None
    from mini_infer.server.tracing import TraceContext, Tracing  # needs a package that others do without

    tracing = Tracing.to(options.otlp_traces_endpoint, options.model_names[0])
    llm.observe(tracing)
    app.add_middleware(TraceContext)
    return tracing.close
