"""Talking to a model in a terminal: `mini-infer chat` and `mini-infer generate`."""

from __future__ import annotations

import http.client
import json
import readline  # noqa: F401  (gives `input` line editing and a history)
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mini_infer.config import ConfigError, EngineConfig
from mini_infer.protocol import RequestError, SamplingParams

Message = dict[str, str]
HELP = """/new        forget the conversation
/system …   set the system prompt and start anew
/retry      answer the last question again
/quit       leave (so does Ctrl-D); Ctrl-C stops an answer"""


class ChatModel(Protocol):
    """Answers a conversation piece by piece. Closing the iterator ends the answer."""

    name: str

    def answer(self, messages: list[Message]) -> Iterator[str]: ...


class LocalModel:
    """A model in this process."""

    def __init__(self, config: EngineConfig, params: SamplingParams):
        from mini_infer.engine.llm import LLM  # loads torch, which a remote chat does without
        from mini_infer.text.chat_template import require_chat_template

        self._llm = LLM(config)
        require_chat_template(self._llm.chat_template)  # refused now, not at the first question
        self._params = params
        self.name = Path(config.model).name

    def answer(self, messages: list[Message]) -> Iterator[str]:
        return self._llm.stream_chat(messages, self._params)


class RemoteModel:
    """A model behind an OpenAI-compatible server. Raises ConfigError when `url` is none."""

    def __init__(self, url: str, model: str | None, sampling: dict[str, Any]):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url: {url!r} is not like http://127.0.0.1:8000")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._sampling = sampling
        self._url = url
        self.name = model or self._first_model()

    def answer(self, messages: list[Message]) -> Iterator[str]:
        body = {"model": self.name, "messages": messages, "stream": True, **self._sampling}
        with closing(self._request("POST", "/v1/chat/completions", body)) as response:
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if not data or data == b"[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise RequestError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text

    def _first_model(self) -> str:
        with closing(self._request("GET", "/v1/models")) as response:
            return json.load(response)["data"][0]["id"]

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        connection = self._connect(self._host, self._port, timeout=600)
        try:
            connection.request(method, self._base + path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
        except OSError as error:
            raise ConfigError(f"url: no answer from {self._url} ({error})") from None
        if response.status != 200:
            text = response.read()
            try:
                message = json.loads(text)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"{self._url} answered {response.status} {response.reason}"
            raise RequestError(message)
        return response


def chat(model: ChatModel, system: str | None) -> int:
    """Read lines, print answers, until the end of input. A stopped answer stays in the conversation as it is."""
    messages: list[Message] = _opening(system)
    print(f"{model.name}: type a message, /help for commands", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("(Ctrl-D or /quit leaves)")
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return 0
        if command == "/new":
            messages = _opening(system)
        elif command == "/system":
            system = rest.strip() or None
            messages = _opening(system)
        elif command == "/retry" and len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages.pop()
            _answer(model, messages)
        elif command.startswith("/"):
            print(HELP)
        elif line:
            messages.append({"role": "user", "content": line})
            _answer(model, messages)


def _opening(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def _answer(model: ChatModel, messages: list[Message]) -> None:
    """Print an answer as it comes and add it to `messages`; Ctrl-C ends it."""
    pieces: list[str] = []
    try:
        with closing(model.answer(messages)) as answer:  # type: ignore[type-var]
            for piece in answer:
                pieces.append(piece)
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    except RequestError as error:
        messages.pop()  # the question that could not be answered
        print(f"error: {error}")
        return
    print()
    messages.append({"role": "assistant", "content": "".join(pieces)})


def generate(config: EngineConfig, prompt: str, params: SamplingParams) -> int:
    """Print the prompt's continuation as it comes, and the rate at the end."""
    from mini_infer.engine.llm import LLM

    llm = LLM(config)
    start, before = time.perf_counter(), llm.stats().generated_tokens
    for piece in llm.stream(prompt, params):
        print(piece, end="", flush=True)
    print()
    tokens, seconds = llm.stats().generated_tokens - before, time.perf_counter() - start
    print(f"{tokens} tokens, {tokens / seconds:.0f} tokens/s", file=sys.stderr)
    return 0
