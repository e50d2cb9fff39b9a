"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from mini_infer.engine.streams import OutputStream
from mini_infer.server.body import json_router
from mini_infer.server.front import Envelope, Front, Usage, check, json_response, whole
from mini_infer.server.logprobs import chat_logprobs, prompt_logprobs_body
from mini_infer.server.reading import DeltaWriter, Reading, finish_reason
from mini_infer.server.schemas import ChatCompletionRequest
from mini_infer.server.sse import DONE, EventStream, event
from mini_infer.text.output import CompletionDelta
from mini_infer.text.parsers.machine import Content
from mini_infer.text.parsers.message import Message
from mini_infer.text.tokenizer import Tokenizer

_encode = msgspec.json.encode


def chat_routes(front: Front) -> APIRouter:
    router = json_router()

    @router.post("/v1/chat/completions", summary="Create a chat completion")
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        return await answer(front, body, request)

    return router


async def answer(front: Front, body: ChatCompletionRequest, request: Request) -> Response:
    model = front.model_name(body.model)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    with body.errors_as_sent():
        params = body.sampling_params(body.token_limit, logprobs)
        reading = Reading.of(body, front.dialects)
        prompt = await front.render(body, body.template_tools())
        params = reading.shape(params, prompt)
        prepared = await front.prepare(request, [prompt], params, add_special_tokens=bool(body.add_special_tokens))
    usage = Usage.of(prepared)
    output = front.submit(prepared, stream=body.stream, timeout=body.timeout, priority=body.priority,
                          cache_salt=body.cache_salt)
    tokenizer = front.llm.tokenizer
    assert tokenizer is not None  # or there would have been no template
    if body.stream:
        envelope = Envelope.new("chatcmpl", "chat.completion.chunk", model, request, body.request_id)
        writers = [] if reading.plain else [DeltaWriter(reading.parser(prompt)) for _ in range(body.n)]
        prompt_ids = prepared[0].prompt_token_ids if body.return_token_ids else None
        return EventStream(ChatChunks(envelope, body, usage, tokenizer, writers, prompt_ids).events(output))
    completions = await whole(output, request)
    envelope = Envelope.new("chatcmpl", "chat.completion", model, request, body.request_id)
    choices: list[dict[str, Any]] = []
    more: dict[str, Any] = {"prompt_token_ids": prepared[0].prompt_token_ids} if body.return_token_ids else {}
    for delta in completions:
        usage.add(delta)
        message = Message([Content(delta.text)] if reading.plain else reading.parser(prompt).read(delta.text))
        choices.append({
            "index": delta.index,
            "message": message.body(),
            "logprobs": sampled_logprobs(delta, body.top_logprobs or 0, tokenizer),
            "finish_reason": finish_reason(delta.finish_reason, bool(message.calls)),
            "stop_reason": delta.stop_reason,
            **({"token_ids": delta.token_ids} if body.return_token_ids else {}),
        })
        if delta.prompt_logprobs is not None:
            more["prompt_logprobs"] = prompt_logprobs_body(delta.prompt_logprobs)
    return json_response(envelope.body(choices, usage=usage.body(), **more))


class ChatChunks:
    """The events of one streamed answer. Most of a chunk never changes, so it is encoded once for each choice.

    `writers`: one a choice, where the text has to be read for calls and thoughts; none where it is just sent.
    `prompt_ids`: where token ids are to be shown; they come with the first chunk.
    """

    def __init__(self, envelope: Envelope, body: ChatCompletionRequest, usage: Usage, tokenizer: Tokenizer,
                 writers: list[DeltaWriter], prompt_ids: list[int] | None = None):
        self._writers = writers
        self._show_token_ids = prompt_ids is not None
        self._prompt_ids = b"" if prompt_ids is None else b',"prompt_token_ids":' + _encode(prompt_ids)
        options = body.stream_options
        self._envelope = envelope
        self._usage = usage
        self._tokenizer = tokenizer
        self._top = body.top_logprobs or 0
        self._include_usage = options is not None and options.include_usage
        self._continuous = options is not None and options.continuous_usage_stats
        self._started: set[int] = set()  # choices whose role has been sent
        plain = _encode(envelope.body([]))[:-2]  # up to the "[" of choices
        self._head = [b"data: " + plain + b'{"index":%d,"delta":' % index for index in range(body.n)]
        self._tail = b',"usage":null}\n\n' if self._include_usage else b"}\n\n"

    async def events(self, output: OutputStream) -> AsyncIterator[bytes]:
        try:
            while (deltas := output.take()) is not None:
                if not deltas:
                    await output.news()
                elif data := b"".join([self._chunks(delta) for delta in deltas]):
                    yield data
            if self._include_usage:
                yield event(self._envelope.body([], usage=self._usage.body()))
            yield DONE
        finally:
            output.close()

    def _chunks(self, delta: CompletionDelta) -> bytes:
        """The role before a choice's first token, the new text, and the reason why it ended."""
        self._usage.add(delta)
        check(delta)
        data = b""
        if delta.index not in self._started:
            self._started.add(delta.index)
            data = self._chunk(delta.index, b'{"role":"assistant","content":""}', b"null", more=self._prompt_ids)
            self._prompt_ids = b""
            if delta.prompt_logprobs is not None:
                data += event(self._envelope.body([], prompt_logprobs=prompt_logprobs_body(delta.prompt_logprobs)))
        if self._writers:
            return data + self._read(delta)
        if delta.text or delta.logprobs or self._show_token_ids:
            data += self._chunk(delta.index, b'{"content":%b}' % _encode(delta.text), self._logprobs_and_ids(delta))
        if delta.finish_reason is not None:
            data += self._chunk(delta.index, b"{}", b"null", delta)
        return data

    def _read(self, delta: CompletionDelta) -> bytes:
        """What new text means; the log-probabilities go with the first part of it."""
        writer = self._writers[delta.index]
        parts = writer.write(delta.text, delta.finish_reason is not None)
        if (delta.logprobs or self._show_token_ids) and not parts:
            parts = [{"content": ""}]
        logprobs, data = self._logprobs_and_ids(delta), b""
        for part in parts:
            data += self._chunk(delta.index, _encode(part), logprobs)
            logprobs = b"null"
        if delta.finish_reason is not None:
            end = delta._replace(finish_reason=finish_reason(delta.finish_reason, writer.has_calls))
            data += self._chunk(delta.index, b"{}", b"null", end)
        return data

    def _logprobs_and_ids(self, delta: CompletionDelta) -> bytes:
        logprobs = b"null" if delta.logprobs is None else \
            _encode(sampled_logprobs(delta, self._top, self._tokenizer))
        return b'%b,"token_ids":%b' % (logprobs, _encode(delta.token_ids)) if self._show_token_ids else logprobs

    def _chunk(self, index: int, content: bytes, logprobs: bytes, end: CompletionDelta | None = None,
               more: bytes = b"") -> bytes:
        reasons = b"null" if end is None else \
            b'%b,"stop_reason":%b' % (_encode(end.finish_reason), _encode(end.stop_reason))
        tail = b',"usage":%b}\n\n' % _encode(self._usage.body()) if self._continuous else self._tail
        return b'%b%b,"logprobs":%b,"finish_reason":%b}]%b%b' % (
            self._head[index], content, logprobs, reasons, more, tail)


def sampled_logprobs(delta: CompletionDelta, top: int, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """A choice's `logprobs`: null unless they were asked for."""
    return None if delta.logprobs is None else chat_logprobs(delta.token_ids, delta.logprobs, top, tokenizer)
