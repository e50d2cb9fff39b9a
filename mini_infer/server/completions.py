"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from mini_infer.engine.streams import OutputStream
from mini_infer.protocol import RequestError
from mini_infer.server.body import json_router
from mini_infer.server.front import Envelope, Front, Usage, check, json_response, whole
from mini_infer.server.limits import MAX_CHOICES
from mini_infer.server.logprobs import CompletionLogprobs, prompt_logprobs_body
from mini_infer.server.schemas import CompletionRequest
from mini_infer.server.sse import DONE, EventStream, event
from mini_infer.text.door import PreparedRequest
from mini_infer.text.output import CompletionDelta, PositionLogprobs
from mini_infer.text.tokenizer import Tokenizer

_encode = msgspec.json.encode


def completion_routes(front: Front) -> APIRouter:
    router = json_router()

    @router.post("/v1/completions", summary="Create a completion")
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        return await answer(front, body, request)

    return router


async def answer(front: Front, body: CompletionRequest, request: Request) -> Response:
    model = front.model_name(body.model)
    prompts = prompts_of(body)
    with body.errors_as_sent():
        prepared = await front.prepare(request, prompts, body.params(),
                                       add_special_tokens=body.add_special_tokens is not False)
    usage = Usage.of(prepared)
    envelope = Envelope.new("cmpl", "text_completion", model, request, body.request_id)
    choices = [Choice(i * body.n + j, one, body, front.tokenizer)
               for i, one in enumerate(prepared) for j in range(body.n)]
    output = front.submit(prepared, stream=body.stream, timeout=body.timeout, priority=body.priority,
                          cache_salt=body.cache_salt)
    if body.stream:
        return EventStream(_events(output, choices, envelope, body, usage))
    parts = []
    for delta in await whole(output, request):
        parts.append(choices[delta.index].part(delta, usage))
    return json_response(envelope.body(parts, usage=usage.body()))


def prompts_of(body: CompletionRequest) -> list[str] | list[list[int]]:
    """The four forms of `prompt` as a list of prompts. Raises RequestError when there are none, or too many choices."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt must not be empty", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]  # type: ignore[list-item]
    if len(prompt) * body.n > MAX_CHOICES:
        raise RequestError(f"prompt: {len(prompt)} prompts with n={body.n} are more than {MAX_CHOICES} completions",
                           "prompt")
    return prompt  # type: ignore[return-value]


class Choice:
    """One completion on its way out: the echoed prompt before its first piece, and log-probabilities that go on."""

    def __init__(self, index: int, request: PreparedRequest, body: CompletionRequest, tokenizer: Tokenizer):
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._logprobs = None if body.logprobs is None else CompletionLogprobs()
        self._show_prompt_logprobs = body.prompt_logprobs is not None
        self._show_token_ids = body.return_token_ids
        self._prompt_only = body.prompt_only
        self._echo = body.echo
        self._first = True
        self._skip_special_tokens = body.skip_special_tokens
        self._only_text = self._logprobs is None and not (body.echo or body.return_token_ids
                                                          or self._show_prompt_logprobs)
        self._text = b'{"index":%d,"text":%%b,"logprobs":null,"finish_reason":null,"stop_reason":null}' % index

    def chunk(self, delta: CompletionDelta, usage: Usage) -> bytes:
        """`part` as JSON; nothing where it would say nothing."""
        if self._only_text and delta.finish_reason is None:  # nearly all of a stream
            usage.add(delta)
            return self._text % _encode(delta.text) if delta.text else b""
        part = self.part(delta, usage)
        says = any(map(part.get, ("text", "logprobs", "finish_reason", "prompt_logprobs", "token_ids")))
        return _encode(part) if says else b""

    def part(self, delta: CompletionDelta, usage: Usage) -> dict[str, Any]:
        """The `choices` entry for what is new, which is counted in `usage`; all of it when nothing was streamed."""
        if self._prompt_only:  # the engine makes one token at least
            delta = delta._replace(text="", token_ids=[], logprobs=None, finish_reason="length", stop_reason=None)
        usage.add(delta)
        first, self._first = self._first, False
        echo = self._echo and first
        text, token_ids = delta.text, delta.token_ids
        positions: list[PositionLogprobs | None] = list(delta.logprobs or ())
        if echo:
            prompt_ids = self._request.prompt_token_ids
            text = self._prompt_text() + text
            token_ids = [*prompt_ids, *token_ids]
            positions = [*(delta.prompt_logprobs or [None] * len(prompt_ids)), *positions]
        part: dict[str, Any] = {
            "index": self._index,
            "text": text,
            "logprobs": None if self._logprobs is None else self._logprobs.of(token_ids, positions, self._tokenizer),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._show_prompt_logprobs and delta.prompt_logprobs is not None:
            part["prompt_logprobs"] = prompt_logprobs_body(delta.prompt_logprobs)
        if self._show_token_ids:
            part["token_ids"] = delta.token_ids
            if first:
                part["prompt_token_ids"] = self._request.prompt_token_ids
        return part

    def _prompt_text(self) -> str:
        if self._request.prompt is not None:
            return self._request.prompt
        return self._tokenizer.decode(self._request.prompt_token_ids, self._skip_special_tokens)


async def _events(output: OutputStream, choices: list[Choice], envelope: Envelope, body: CompletionRequest,
                  usage: Usage) -> AsyncIterator[bytes]:
    options = body.stream_options
    include_usage = options is not None and options.include_usage
    continuous = options is not None and options.continuous_usage_stats
    head = b"data: " + _encode(envelope.body([]))[:-2]  # up to the "[" of choices; the same in every chunk
    tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    try:
        while (deltas := output.take()) is not None:
            if not deltas:
                await output.news()
                continue
            data = b""
            for delta in deltas:
                check(delta)
                chunk = choices[delta.index].chunk(delta, usage)
                if continuous:
                    tail = b',"usage":%b}\n\n' % _encode(usage.body())
                if chunk:
                    data += b"%b%b]%b" % (head, chunk, tail)
            if data:
                yield data
        if include_usage:
            yield event(envelope.body([], usage=usage.body()))
        yield DONE
    finally:
        output.close()
