"""From the command line's options to a running server, in an order that keeps the start short:

take the port, start the engine process (which goes on to load), import the HTTP packages meanwhile, wait, listen.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.sim import SimConfig


@dataclass(frozen=True)
class ServeOptions:
    """`served_model_name`: () means the model's own. `sim` makes it a dry run."""

    config: EngineConfig
    sim: SimConfig | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    shutdown_timeout: int = 30  # seconds that running requests get after SIGTERM

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        if self.shutdown_timeout < 0:
            raise ConfigError(f"shutdown_timeout must be at least 0 seconds, got {self.shutdown_timeout}")
        if self.config.skip_tokenizer_init:
            raise ConfigError("skip_tokenizer_init: a server needs the tokenizer; use LLM for token ids alone")

    @property
    def model_names(self) -> tuple[str, ...]:
        own = Path(self.config.model).name if Path(self.config.model).is_dir() else self.config.model
        return self.served_model_name or (("dry", own) if self.sim is not None else (own,))


def serve(options: ServeOptions, start: float) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises ConfigError for what cannot work.

    `start`: when the program started, in seconds of `time.perf_counter`.
    """
    sock = bind(options.host, options.port)
    llm = AsyncLLM(options.config, options.sim)
    llm.spawn()
    from mini_infer.server.run import run  # after the engine's start on purpose: the two import side by side

    log(f"imports: {time.perf_counter() - start:.2f} s")
    return run(options, sock, llm, start)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket to be, not listening yet. Raises ConfigError, naming host or port, when it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port: {host}:{port} is in use; choose another with --port") from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


def log(text: str) -> None:
    print(f"mini-infer: {text}", file=sys.stderr, flush=True)
