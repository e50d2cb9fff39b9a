"""Who answers in a terminal: a model in this process, or one behind a server."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.protocol import RequestError, SamplingParams

Message = Mapping[str, str]
TIMEOUT_SECONDS = 600.0  # between two pieces of an answer


class Piece(NamedTuple):
    """Of an answer, or of the thoughts that come before it where a server tells them apart."""

    text: str
    thought: bool = False


class ChatModel(Protocol):
    """Answers a conversation piece by piece, with SamplingParams fields in `sampling`. Closing the iterator ends the
    answer. Raises RequestError when there is none, KeyboardInterrupt when the user stops it."""

    name: str

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Iterator[Piece]: ...


class LocalModel:
    """A model in this process."""

    def __init__(self, config: EngineConfig):
        from mini_infer.engine.llm import LLM  # loads torch, which a remote chat does without
        from mini_infer.text.chat_template import require_chat_template

        self._llm = LLM(config)
        require_chat_template(self._llm.chat_template)  # refused now, not at the first question
        self.name = Path(config.model).name

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Iterator[Piece]:
        params = SamplingParams(**{"max_tokens": None, **sampling})
        with _sigint_at_the_next_piece() as stop, closing(self._llm.stream_chat(messages, params)) as pieces:  # type: ignore[type-var]
            for text in pieces:
                yield Piece(text)
                if stop.asked:
                    raise KeyboardInterrupt


@dataclass
class _Stop:
    asked: bool = False


@contextmanager
def _sigint_at_the_next_piece() -> Iterator[_Stop]:
    """An exception in the middle of a step would lose the step: the first Ctrl-C only asks, the second one raises."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class RemoteModel:
    """A model behind an OpenAI-compatible server; `model=None` is the first one it has. Raises ConfigError when there
    is no server at `url`, RequestError when it refuses."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url: {url!r} is not like http://127.0.0.1:8000")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._url = url
        try:
            self.name = model or self._first_model()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"url: no answer from {url} ({error})") from None

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Iterator[Piece]:
        body = {"model": self.name, "messages": messages, "stream": True, **sampling}
        try:
            with self._response("POST", "/v1/chat/completions", body) as response:
                yield from _pieces(response)
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(f"the connection to {self._url} broke ({error})") from None

    def _first_model(self) -> str:
        with self._response("GET", "/v1/models") as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (ValueError, KeyError, TypeError, IndexError):
                raise ConfigError(f"url: {self._url} does not list its models as OpenAI's API does") from None

    @contextmanager
    def _response(self, method: str, path: str,
                  body: dict[str, Any] | None = None) -> Iterator[http.client.HTTPResponse]:
        """Raises RequestError for a status other than 200. The connection ends with the block: a server frees then
        what an unfinished answer holds."""
        with closing(self._connect(self._host, self._port, timeout=TIMEOUT_SECONDS)) as connection:
            connection.request(method, self._base + path, None if body is None else json.dumps(body), self._headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    raise RequestError(_refusal(response.read(), f"{self._url} answered {response.status} "
                                                                 f"{response.reason}"))
                yield response


def _pieces(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[Piece]:
    """What a stream of server-sent events says. Raises RequestError for an event that is an error, or that is none."""
    for line in lines:
        data = line.removeprefix(b"data:").strip()
        if not data or data == b"[DONE]" or not line.startswith(b"data:"):
            continue
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise RequestError(str(chunk["error"]["message"]))
            deltas = [choice["delta"] for choice in chunk["choices"]]
            for delta in deltas:
                if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                    yield Piece(thought, thought=True)
                if text := delta.get("content"):
                    yield Piece(text)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
            raise RequestError("the server sent something that is no chunk of an answer") from None


def _refusal(body: bytes, otherwise: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise
