"""What a client of the storm gets, read strictly: HTTP, the form of a stream, and what was said."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


class BrokenAnswerError(Exception):
    """The bytes are not what HTTP, or the API, would have them be."""


@dataclass
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def last(self) -> bool:
        """Whether the server closes the connection after it."""
        return self.headers.get("connection") == "close"

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


async def read_answer(reader: asyncio.StreamReader) -> HttpAnswer:
    """The next answer of a connection. Raises BrokenAnswerError, or IncompleteReadError where it ends too early."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    status = head[0].split(" ", 2)
    require(status[0] == "HTTP/1.1" and len(status) == 3, f"status line {head[0]!r}")
    headers = dict(line.lower().split(": ", 1) for line in head[1:])
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            pieces.append(await reader.readexactly(size))
            require(await reader.readexactly(2) == b"\r\n", "a chunk without its end")
        require(await reader.readexactly(2) == b"\r\n", "a trailer after the last chunk")
        return HttpAnswer(int(status[1]), headers, b"".join(pieces))
    return HttpAnswer(int(status[1]), headers, await reader.readexactly(int(headers["content-length"])))


def require(condition: object, message: str) -> None:
    if not condition:
        raise BrokenAnswerError(message)


@dataclass
class Said:
    """One choice of an answer: its text, its calls as (name, arguments), and why it ended; None while it goes on."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    reason: str | None = None

    def add(self, part: dict[str, Any], reason: str | None) -> None:
        require(self.reason is None, "a choice goes on after its end")
        self.text += part.get("text") or part.get("content") or ""
        for call in part.get("tool_calls") or ():
            if call["function"].get("name") is not None:
                self.calls.append([call["function"]["name"], ""])
            self.calls[call.get("index", -1)][1] += call["function"]["arguments"]
        self.reason = reason


def said(path: str, answer: HttpAnswer) -> list[Said]:
    """The choices of an answer with status 200, whole or streamed. Raises BrokenAnswerError unless every one of them
    ended, once; and StreamFailedError where the stream ended with an error."""
    if answer.streamed:
        choices = _anthropic_stream(answer.body) if path == "/v1/messages" else _openai_stream(answer.body)
    elif path == "/v1/messages":
        choices = [_anthropic(json.loads(answer.body))]
    else:
        choices = []
        for number, choice in enumerate(json.loads(answer.body)["choices"]):
            require(choice["index"] == number, "choices out of order")
            choices.append(Said())
            choices[-1].add(choice.get("message") or choice, choice["finish_reason"])
    require(all(choice.reason is not None for choice in choices), "a choice without an end")
    return choices


class StreamFailedError(Exception):
    """The stream ended with an error event, whose code, or type in Anthropic's streams, this is."""


def _events(body: bytes) -> list[str]:
    parts = body.decode().split("\n\n")
    require(parts.pop() == "", "a stream that breaks off within an event")
    return parts


def _openai_stream(body: bytes) -> list[Said]:
    events = _events(body)
    require(events[-1:] == ["data: [DONE]"] and events.count("data: [DONE]") == 1, "not one [DONE], at the end")
    found: dict[int, Said] = {}
    for event in events[:-1]:
        require(event.startswith("data: ") and "\n" not in event, f"event {event[:80]!r}")
        chunk = json.loads(event[6:])
        if "error" in chunk:
            require(event is events[-2], "something after an error")
            raise StreamFailedError(chunk["error"]["code"])
        for choice in chunk["choices"]:
            found.setdefault(choice["index"], Said()).add(choice.get("delta") or choice, choice["finish_reason"])
    require(sorted(found) == list(range(len(found))), "a choice is missing")
    return [found[index] for index in sorted(found)]


def _anthropic(message: dict[str, Any]) -> Said:
    heard = Said()
    for block in message["content"]:
        if block["type"] == "text":
            heard.text += block["text"]
        elif block["type"] == "tool_use":
            heard.calls.append([block["name"], json.dumps(block["input"])])
    heard.reason = message["stop_reason"]
    return heard


def _anthropic_stream(body: bytes) -> list[Said]:
    heard, kinds, inputs = Said(), list[str](), list[str]()
    for event in _events(body):
        name, _, data = event.partition("\n")
        value = json.loads(data.removeprefix("data: "))
        require(name == f"event: {value['type']}", f"event {event[:80]!r}")
        kinds.append(value["type"])
        match value:
            case {"type": "error", "error": error}:
                raise StreamFailedError(error["type"])
            case {"content_block": {"type": "tool_use", "name": called}}:
                heard.calls.append([called, ""])
                inputs.append("")
            case {"delta": {"type": "text_delta", "text": text}}:
                heard.text += text
            case {"delta": {"type": "input_json_delta", "partial_json": text}}:
                inputs[-1] += text
            case {"type": "message_delta", "delta": delta}:
                heard.reason = delta["stop_reason"]
    for call, text in zip(heard.calls, inputs):
        call[1] = json.dumps(json.loads(text))
    for kind in ("message_start", "message_delta", "message_stop"):
        require(kinds.count(kind) == 1, f"not one {kind}")
    require(kinds[0] == "message_start" and kinds[-1] == "message_stop", "a message without its start or its end")
    require(kinds.count("content_block_start") == kinds.count("content_block_stop"), "a block without an end")
    return [heard]
