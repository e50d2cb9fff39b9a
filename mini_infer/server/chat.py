"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from mini_infer.engine.streams import OutputStream
from mini_infer.server.front import Envelope, Front, Usage, check, json_response, whole
from mini_infer.server.logprobs import chat_logprobs, prompt_logprobs_body
from mini_infer.server.schemas import ChatCompletionRequest
from mini_infer.server.sse import DONE, EventStream, event
from mini_infer.text.output import CompletionDelta
from mini_infer.text.tokenizer import Tokenizer

_encode = msgspec.json.encode


def chat_routes(front: Front) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Create a chat completion")
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        return await answer(front, body, request)

    return router


async def answer(front: Front, body: ChatCompletionRequest, request: Request) -> Response:
    model = front.model_name(body.model)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = body.sampling_params(max_tokens, logprobs)
    prompt = await front.llm.render_chat(
        [message.for_template() for message in body.messages], tools=body.template_tools(), documents=body.documents,
        add_generation_prompt=body.add_generation_prompt, continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs)
    prepared = await front.llm.prepare([prompt], params, clip_max_tokens=False,
                                       add_special_tokens=bool(body.add_special_tokens))
    usage = Usage.of(prepared)
    output = front.llm.submit(prepared, priority=body.priority, cache_salt=body.cache_salt, stream=body.stream)
    tokenizer = front.llm.tokenizer
    assert tokenizer is not None  # or there would have been no template
    if body.stream:
        envelope = Envelope.new("chatcmpl", "chat.completion.chunk", model)
        return EventStream(ChatChunks(envelope, body, usage, tokenizer).events(output))
    completions = await whole(output, request)
    envelope = Envelope.new("chatcmpl", "chat.completion", model)
    choices: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    for delta in completions:
        usage.add(delta)
        choices.append({
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": sampled_logprobs(delta, body.top_logprobs or 0, tokenizer),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        })
        if delta.prompt_logprobs is not None:
            more["prompt_logprobs"] = prompt_logprobs_body(delta.prompt_logprobs)
    return json_response(envelope.body(choices, usage=usage.body(), **more))


class ChatChunks:
    """The events of one streamed answer. Most of a chunk never changes, so it is encoded once for each choice."""

    def __init__(self, envelope: Envelope, body: ChatCompletionRequest, usage: Usage, tokenizer: Tokenizer):
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
            async for deltas in output:
                if data := b"".join([self._chunks(delta) for delta in deltas]):
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
            data = self._chunk(delta.index, b'{"role":"assistant","content":""}', b"null")
            if delta.prompt_logprobs is not None:
                data += event(self._envelope.body([], prompt_logprobs=prompt_logprobs_body(delta.prompt_logprobs)))
        if delta.text or delta.logprobs:
            logprobs = _encode(sampled_logprobs(delta, self._top, self._tokenizer))
            data += self._chunk(delta.index, b'{"content":%b}' % _encode(delta.text), logprobs)
        if delta.finish_reason is not None:
            data += self._chunk(delta.index, b"{}", b"null", delta)
        return data

    def _chunk(self, index: int, content: bytes, logprobs: bytes, end: CompletionDelta | None = None) -> bytes:
        reasons = b"null" if end is None else \
            b'%b,"stop_reason":%b' % (_encode(end.finish_reason), _encode(end.stop_reason))
        tail = b',"usage":%b}\n\n' % _encode(self._usage.body()) if self._continuous else self._tail
        return b'%b%b,"logprobs":%b,"finish_reason":%b}]%b' % (self._head[index], content, logprobs, reasons, tail)


def sampled_logprobs(delta: CompletionDelta, top: int, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """A choice's `logprobs`: null unless they were asked for."""
    return None if delta.logprobs is None else chat_logprobs(delta.token_ids, delta.logprobs, top, tokenizer)
