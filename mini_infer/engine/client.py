"""The front's end of the engine process: start it, talk to it, notice when it dies."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.ipc import FrameDecoder, Message, ProtocolError, encode
from mini_infer.engine.process import config_to_json
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import EngineFailed, EngineInfo

EXIT_SECONDS = 10.0


class EngineDeadError(RuntimeError):
    """The engine process is not there (any more). Requests cannot be served until it is started again."""


class EngineClient:
    """Owns the engine process and the socket to it.

    `spawn` needs no event loop and returns at once, so the front's own imports overlap with the engine's loading.
    `on_message` gets every message after the first; `on_lost` is called once if the engine ends without being asked.
    A client serves for one life of an engine.
    """

    def __init__(self, config: EngineConfig, sim: SimConfig | None = None):
        self._config = config
        self._sim = sim
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._closing = False
        self._last_words: str | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def spawn(self) -> None:
        """Start the process; its end of a socket pair is the only way to reach it."""
        ours, theirs = socket.socketpair()
        with theirs:
            # The engine must find what this process finds, plug-ins included; it gets a session of its own so
            # that Ctrl-C in a terminal reaches the front alone.
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, "-m", "mini_infer.engine.process", str(theirs.fileno()),
                       config_to_json(self._config, self._sim)]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL,
                                             start_new_session=True)
        self._socket = ours

    async def connect(self, on_message: Callable[[Message], None],
                      on_lost: Callable[[EngineDeadError], None]) -> EngineInfo:
        """Wait for the engine to be ready. Raises ConfigError or EngineDeadError when it could not start."""
        if self._socket is None:
            self.spawn()
        assert self._socket is not None
        ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()

        def first(message: Message) -> None:
            if isinstance(message, EngineInfo):
                link.on_message = later
                ready.set_result(message)
            elif isinstance(message, EngineFailed):
                ready.set_exception(ConfigError(message.message) if message.bad_config else
                                    EngineDeadError(f"the engine could not start: {message.message}"))

        def later(message: Message) -> None:
            if isinstance(message, EngineFailed):
                self._last_words = message.message
            else:
                on_message(message)

        def lost() -> None:
            if self._closing and ready.done():
                return  # on purpose: `close` waits for the engine to end in order
            error = self._death()
            if not ready.done():
                ready.set_exception(error)
            else:
                on_lost(error)

        link = _Link(first, lost)
        self._transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=self._socket)
        return await ready

    def send(self, message: Message) -> None:
        """Queue a message to the engine; never blocks. Without effect while the engine is not there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    @property
    def unsent_bytes(self) -> int:
        """What the engine has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def kill(self) -> None:
        """End an engine that does not listen; `on_lost` follows."""
        if self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """Tell the engine to end by closing the socket, and wait for it; one that does not listen is killed."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            await asyncio.to_thread(_wait_or_kill, self._process)

    def _death(self) -> EngineDeadError:
        assert self._process is not None
        try:
            how = f"died (exit status {self._process.wait(timeout=0.5)})"
        except subprocess.TimeoutExpired:  # it cannot be reached any more, whatever it does; `close` sees it end
            self._process.kill()
            how = "closed its connection"
        if self._last_words is not None:
            how = f"ended: {self._last_words}"
        return EngineDeadError(f"the engine process {how}")


class _Link(asyncio.Protocol):
    """Bytes from the socket become messages; `on_message` may be exchanged between two messages."""

    def __init__(self, on_message: Callable[[Message], None], on_lost: Callable[[], None]):
        self.on_message = on_message
        self._on_lost = on_lost
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            messages = self._decoder.feed(data)
        except ProtocolError as error:
            print(f"mini-infer: the engine sent {error}", file=sys.stderr, flush=True)
            self._transport.abort()
            return
        for message in messages:
            self.on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
