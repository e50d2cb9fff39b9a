"""From the command line's options to a running server, in an order that keeps the start short:

take the port, start the engine process (which goes on to load), import the HTTP packages meanwhile, wait, listen.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.engine.async_llm import STALL_TIMEOUT, AsyncLLM
from mini_infer.engine.sim import SimConfig
from mini_infer.protocol import MAX_LOGPROBS
from mini_infer.server.limits import MAX_BODY_SIZE, MAX_BUFFERED_SIZE, MAX_TIMEOUT
from mini_infer.text.chat_template import ChatTemplate
from mini_infer.text.parsers.dialects import REASONING_PARSERS, TOOL_PARSERS

READER_SECONDS = 300  # after which a connection ends whose client takes none of what waits for it
ENV_API_KEY = "MINI_INFER_API_KEY"
TRACES_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


@dataclass(frozen=True)
class ServeOptions:
    """`served_model_name`: () means the model's own. `sim` makes it a dry run. Raises ConfigError naming the field.

    `api_key`: any of them opens the server; () means no key. `chat_template`: a file, or the template itself.
    `tool_call_parser`, `reasoning_parser`: "none", or how the model writes; None: as its chat template does.
    `ssl_cert_reqs`: 0 asks clients for no certificate, 1 takes one, 2 wants one (the ssl module's numbers).
    `allowed_origins`: () means no CORS headers at all.
    """

    config: EngineConfig
    sim: SimConfig | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    shutdown_timeout: int = 30  # seconds that running requests get after SIGTERM
    max_queue: int = 2048
    max_concurrent_requests: int | None = None
    default_timeout: float | None = None  # seconds for a request that names none
    engine_stall_timeout: float = STALL_TIMEOUT  # seconds
    restart_engine: int = 0  # times an hour
    api_key: tuple[str, ...] = field(default=(), repr=False)
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    root_path: str = ""
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    max_logprobs: int = MAX_LOGPROBS
    max_body_size: int = MAX_BODY_SIZE
    max_buffered_size: int = MAX_BUFFERED_SIZE
    enable_request_id_headers: bool = False
    otlp_traces_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        if self.shutdown_timeout < 0:
            raise ConfigError(f"shutdown_timeout must be at least 0 seconds, got {self.shutdown_timeout}")
        if self.max_queue < 0:
            raise ConfigError(f"max_queue must be at least 0, got {self.max_queue}")
        if self.max_concurrent_requests is not None and self.max_concurrent_requests < 1:
            raise ConfigError(f"max_concurrent_requests must be at least 1, got {self.max_concurrent_requests}")
        if self.default_timeout is not None and not 0 < self.default_timeout <= MAX_TIMEOUT:
            raise ConfigError(f"default_timeout must be above 0 and at most {MAX_TIMEOUT} seconds, "
                              f"got {self.default_timeout}")
        if not self.engine_stall_timeout > 0:
            raise ConfigError(f"engine_stall_timeout must be above 0 seconds, got {self.engine_stall_timeout}")
        if self.restart_engine < 0:
            raise ConfigError(f"restart_engine must be at least 0, got {self.restart_engine}")
        if self.config.skip_tokenizer_init:
            raise ConfigError("skip_tokenizer_init: a server needs the tokenizer; use LLM for token ids alone")
        if not all(key and key.isascii() and key.isprintable() and key == key.strip() for key in self.api_key):
            raise ConfigError("api_key must be printable ASCII without spaces around it: it travels in a header")
        if not 0 <= self.max_logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"max_logprobs must be between 0 and {MAX_LOGPROBS}, got {self.max_logprobs}")
        if self.max_body_size < 1024:
            raise ConfigError(f"max_body_size must be at least 1024 bytes, got {self.max_body_size}")
        if self.max_buffered_size < self.max_body_size:
            raise ConfigError(f"max_buffered_size must be at least max_body_size ({self.max_body_size} bytes), "
                              f"got {self.max_buffered_size}")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(f"root_path must begin with a slash and not end with one, got {self.root_path!r}")
        for name, parsers in (("tool_call_parser", TOOL_PARSERS), ("reasoning_parser", REASONING_PARSERS)):
            if vars(self)[name] not in (None, "none", *parsers):
                raise ConfigError(f"{name} must be one of {', '.join(parsers)}, or none to leave the text as it is; "
                                  f"got {vars(self)[name]!r}")
        self._check_tls()
        if self.otlp_traces_endpoint is not None:
            _check_traces(self.otlp_traces_endpoint)

    def _check_tls(self) -> None:
        """Before anything loads: a missing file or a key that does not fit should not cost a minute."""
        if self.ssl_cert_reqs not in (0, 1, 2):
            raise ConfigError(f"ssl_cert_reqs must be 0, 1 or 2, got {self.ssl_cert_reqs}")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ConfigError("ssl_cert_reqs needs ssl_ca_certs, to check the clients' certificates against")
        if self.ssl_certfile is None:
            given = [name for name in ("ssl_keyfile", "ssl_ca_certs") if vars(self)[name] is not None]
            if given:
                raise ConfigError(f"{given[0]} needs ssl_certfile")
            return
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
            if vars(self)[name] is not None and not Path(vars(self)[name]).is_file():
                raise ConfigError(f"{name}: {vars(self)[name]} is not a file")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"ssl_certfile: {self.ssl_certfile} and its key cannot be used: {error}") from None

    @property
    def model_names(self) -> tuple[str, ...]:
        own = Path(self.config.model).name if Path(self.config.model).is_dir() else self.config.model
        return self.served_model_name or (("dry", own) if self.sim is not None else (own,))


def _check_traces(endpoint: str) -> None:
    """Raises ConfigError for what is no URL, and where the packages are missing."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp_traces_endpoint: {endpoint!r} is not like http://127.0.0.1:4318/v1/traces")
    try:
        found = all(find_spec(name) is not None for name in TRACES_PACKAGES)
    except ModuleNotFoundError:  # not even the package around it
        found = False
    if not found:
        raise ConfigError("otlp_traces_endpoint needs OpenTelemetry: pip install 'mini-infer[otel]'")


def serve(options: ServeOptions, start: float) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises ConfigError for what cannot work.

    `start`: when the program started, in seconds of `time.perf_counter`.
    """
    if options.chat_template is not None:
        options = replace(options, chat_template=template_text(options.chat_template))
    sock = bind(options.host, options.port)
    llm = AsyncLLM(options.config, options.sim, max_queue=options.max_queue,
                   stall_timeout=options.engine_stall_timeout)
    llm.spawn()
    from mini_infer.server.run import run  # after the engine's start on purpose: the two import side by side

    log(f"imports: {time.perf_counter() - start:.2f} s")
    return run(options, sock, llm, start)


def template_text(value: str) -> str:
    """The template that --chat-template names, or is. Raises ConfigError when it is neither, or does not compile."""
    if not any(mark in value for mark in "{}\n"):
        try:
            value = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {value} is no template, and no file that can be read: {error}") from None
    ChatTemplate(value)
    return value


def bind(host: str, port: int) -> socket.socket:
    """The listening socket to be, not listening yet. Raises ConfigError, naming host or port, when it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is not an address of this machine ({error.strerror})") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":  # connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * READER_SECONDS)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port: {host}:{port} is in use; choose another with --port") from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


def log(text: str) -> None:
    """One line on standard error, lost where nobody reads it any more: what it tells of must happen all the same."""
    with suppress(OSError):
        print(f"mini-infer: {text}", file=sys.stderr, flush=True)
