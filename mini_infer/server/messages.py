"""POST /v1/messages: Anthropic's form of a chat completion, and how many tokens one would have."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from mini_infer.engine.streams import OutputStream
from mini_infer.server.body import json_router
from mini_infer.server.errors import anthropic_body
from mini_infer.server.front import Front, Usage, check, json_response, whole
from mini_infer.server.messages_schemas import CountTokensRequest, MessagesRequest
from mini_infer.server.reading import Reading
from mini_infer.server.sse import EventStream, named_event
from mini_infer.text.output import CompletionDelta
from mini_infer.text.parsers.machine import CallArguments, CallStart, Content, Event, OutputParser, Reasoning
from mini_infer.text.parsers.message import Message, ToolCall

_encode = msgspec.json.encode
_BLOCK_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{%b:%b}}\n\n'
_TEXT = b'"type":"text_delta","text"'
_THOUGHT = b'"type":"thinking_delta","thinking"'
_ARGUMENTS = b'"type":"input_json_delta","partial_json"'


def message_routes(front: Front) -> APIRouter:
    router = json_router()

    @router.post("/v1/messages", summary="Create a message (Anthropic's API)")
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        answer = Answer(front.model_name(body.model), body.stop_sequences or [])
        chat = body.chat()
        with body.errors_as_sent():
            reading = Reading.of(chat, front.dialects)
            prompt = await front.render(chat, chat.template_tools())
            params = reading.shape(chat.sampling_params(body.max_tokens, None), prompt)
            prepared = await front.prepare(request, [prompt], params, add_special_tokens=False)
        usage = Usage.of(prepared)
        parser = reading.parser(prompt)
        output = front.submit(prepared, stream=body.stream)
        if body.stream:
            return EventStream(_events(output, answer, usage, None if reading.plain else parser), error_event)
        [delta] = await whole(output, request)
        usage.add(delta)
        message = Message([Content(delta.text)] if reading.plain else parser.read(delta.text))
        return json_response(answer.message(blocks(message), usage, delta, bool(message.calls)))

    @router.post("/v1/messages/count_tokens", summary="The tokens that a message's prompt has (Anthropic's API)")
    async def count_tokens(body: CountTokensRequest) -> Response:
        front.model_name(body.model)
        chat = body.chat()
        with body.errors_as_sent():
            prompt = await front.render(chat, chat.template_tools())
            tokens = await front.encode(prompt, add_special_tokens=False)
        return json_response({"input_tokens": len(tokens)})

    return router


@dataclass(frozen=True)
class Answer:
    """What an answer says of itself, whole or streamed."""

    model: str
    stop_sequences: list[str]

    def message(self, content: list[dict[str, Any]], usage: Usage, end: CompletionDelta | None,
                has_calls: bool) -> dict[str, Any]:
        """The message; `end` is what finished it, None while it goes on."""
        return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": self.model,
                "content": content, **self.reason(end, has_calls), "usage": message_usage(usage)}

    def reason(self, end: CompletionDelta | None, has_calls: bool) -> dict[str, str | None]:
        """Anthropic's stop_reason and stop_sequence."""
        if end is None:
            return {"stop_reason": None, "stop_sequence": None}
        if isinstance(end.stop_reason, str) and end.stop_reason in self.stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": end.stop_reason}
        reason = "max_tokens" if end.finish_reason == "length" else "tool_use" if has_calls else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}


def message_usage(usage: Usage) -> dict[str, int]:
    """Anthropic's counts: input_tokens are those that were not found in the cache."""
    cached = sum(usage.cached.values())
    return {"input_tokens": usage.prompt_tokens - cached, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached, "output_tokens": usage.completion_tokens}


def blocks(message: Message) -> list[dict[str, Any]]:
    """The content of a whole answer: thoughts, text, calls."""
    found: list[dict[str, Any]] = []
    if message.reasoning:
        found.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content:
        found.append({"type": "text", "text": message.content})
    for call in message.calls:
        found.append({"type": "tool_use", "id": call.id, "name": call.name,
                      "input": msgspec.Raw("".join(call.arguments).encode())})  # JSON already
    return found


class BlockWriter:
    """The events of a streamed answer's content: a block for each run of text, or thoughts, and for each call."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: type[Event] | None = None  # of the block that is open
        self.has_calls = False

    def write(self, events: list[Event]) -> bytes:
        data = b""
        for event in events:
            match event:
                case Content(text):
                    data += self._open(Content, {"type": "text", "text": ""})
                    data += _BLOCK_DELTA % (self._index, _TEXT, _encode(text))
                case Reasoning(text):
                    data += self._open(Reasoning, {"type": "thinking", "thinking": "", "signature": ""})
                    data += _BLOCK_DELTA % (self._index, _THOUGHT, _encode(text))
                case CallStart(_, name):
                    self.has_calls = True
                    data += self.close()
                    data += self._open(CallStart, {"type": "tool_use", "id": ToolCall(name).id, "name": name,
                                                   "input": {}})
                case CallArguments(_, text):
                    data += _BLOCK_DELTA % (self._index, _ARGUMENTS, _encode(text))
        return data

    def close(self) -> bytes:
        """End the block that is open, if one is."""
        if self._kind is None:
            return b""
        self._kind = None
        return typed_event("content_block_stop", index=self._index)

    def _open(self, kind: type[Event], block: dict[str, Any]) -> bytes:
        if self._kind is kind:
            return b""
        data = self.close()
        self._index += 1
        self._kind = kind
        return data + typed_event("content_block_start", index=self._index, content_block=block)


async def _events(output: OutputStream, answer: Answer, usage: Usage,
                  parser: OutputParser | None) -> AsyncIterator[bytes]:
    """`parser` is None where all of the text is content."""
    writer, started = BlockWriter(), False
    try:
        async for deltas in output:
            [delta] = deltas
            check(delta)
            usage.add(delta)
            finished = delta.finish_reason is not None
            data = b"" if started else typed_event("message_start", message=answer.message([], usage, None, False))
            started = True
            if parser is not None:
                data += writer.write(parser.feed(delta.text) + (parser.finish() if finished else []))
            elif delta.text:
                data += writer.write([Content(delta.text)])
            if finished:
                data += writer.close()
                data += typed_event("message_delta", delta=answer.reason(delta, writer.has_calls),
                                    usage=message_usage(usage))
                data += typed_event("message_stop")
            if data:
                yield data
    finally:
        output.close()


def error_event(status: int, body: dict[str, Any]) -> bytes:
    """How Anthropic's streams end with an error."""
    return named_event("error", anthropic_body(status, body))


def typed_event(kind: str, **fields: Any) -> bytes:
    """One of Anthropic's events: its name twice, in the event's line and in its data."""
    return named_event(kind, {"type": kind, **fields})
