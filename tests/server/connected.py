"""Connections without a server around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from mini_infer.server import launch
from mini_infer.server.buffers import Buffers
from mini_infer.server.connection import Connection

App = Callable[[Scope, Receive, Send], Awaitable[None]]


@asynccontextmanager
async def serve(app: App, buffers: Buffers) -> AsyncIterator[int]:
    """The port of an application behind our connections, on a socket such as the server listens on."""
    config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_level="critical")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(buffers, config=config, server_state=state, app_state={}), sock=launch.bind("127.0.0.1", 0))
    async with server:
        yield server.sockets[0].getsockname()[1]
