"""What every route needs: the engine, the names it is served under, and the parts that all answers share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mini_infer.engine.async_llm import AsyncLLM, takes_long
from mini_infer.engine.streams import GenerationError, OutputStream
from mini_infer.protocol import RequestError, SamplingParams
from mini_infer.server.errors import ModelNotFoundError
from mini_infer.server.feed import Feed
from mini_infer.server.gate import client_request_id
from mini_infer.server.launch import ServeOptions
from mini_infer.server.lifecycle import Lifecycle
from mini_infer.server.limits import check_copies
from mini_infer.server.metrics import ServerMetrics
from mini_infer.server.reading import Dialects
from mini_infer.server.schemas import Conversation
from mini_infer.server.sse import until_gone
from mini_infer.text.chat_template import ChatTemplate, require_chat_template
from mini_infer.text.door import PreparedRequest, Prompt
from mini_infer.text.output import CompletionDelta
from mini_infer.text.template_process import RequestTemplates
from mini_infer.text.tokenizer import Tokenizer

MAX_COUNTED_CHARS = 2**20  # of a text to be tokenized, or CHARS_PER_TOKEN times the context length where that is more
CHARS_PER_TOKEN = 16


@dataclass(frozen=True)
class Front:
    """`model_names`: what clients may call the model; the first one is what we call it.
    `chat_template`: the model's, or the one that the options name; None when there is neither."""

    llm: AsyncLLM
    model_names: tuple[str, ...]
    metrics: ServerMetrics
    feed: Feed
    life: Lifecycle
    options: ServeOptions
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    request_templates: RequestTemplates
    dialects: Dialects
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, options: ServeOptions, llm: AsyncLLM, metrics: ServerMetrics, feed: Feed, life: Lifecycle) -> Front:
        """Of an engine that has been started. Raises ConfigError for a chat template that does not compile."""
        tokenizer = llm.tokenizer
        assert tokenizer is not None  # ServeOptions refuses to serve without one
        template = llm.chat_template
        if options.chat_template is not None:
            template = ChatTemplate(options.chat_template, tokenizer.special_tokens)
        dialects = Dialects.of(options.tool_call_parser, options.reasoning_parser, template, tokenizer)
        return cls(llm, options.model_names, metrics, feed, life, options, tokenizer, template,
                   RequestTemplates(tokenizer.special_tokens), dialects)

    def model_name(self, asked: str | None) -> str:
        """The name to answer under. Raises ModelNotFoundError for a model that is not here."""
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            raise ModelNotFoundError(asked)
        return asked

    async def render(self, body: Conversation, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The prompt of a conversation. Raises RequestError naming the field."""
        messages = [message.for_template() for message in body.messages]
        options: dict[str, Any] = {
            "tools": tools, "documents": body.documents, "add_generation_prompt": body.add_generation_prompt,
            "continue_final_message": body.continue_final_message, "chat_template_kwargs": body.chat_template_kwargs}
        if body.chat_template is not None:
            if not self.options.trust_request_chat_template:
                raise RequestError("chat_template is a program, and this server runs none from requests; it would have "
                                   "to be started with --trust-request-chat-template", "chat_template")
            if body.reasoning_effort is not None:
                raise RequestError("reasoning_effort cannot go with chat_template; use chat_template_kwargs",
                                   "reasoning_effort")
            return await self.request_templates.render(body.chat_template, messages, options)
        template = require_chat_template(self.chat_template)
        for name, value in (("tools", tools), ("documents", body.documents)):
            if value and not template.reads(name, tools):
                raise RequestError(f"{name}: the chat template of this model does not show them to it", name)
        calls = next((i for i, message in enumerate(body.messages) if message.tool_calls), None)
        if calls is not None and not template.shows_calls(tools):
            field = f"messages[{calls}].tool_calls"
            raise RequestError(f"{field}: the chat template of this model does not show calls to it", field)
        if body.reasoning_effort is not None:
            options["chat_template_kwargs"] = {**_effort(template, body.reasoning_effort, tools),
                                               **(body.chat_template_kwargs or {})}
        return await self.llm.render_chat(messages, chat_template=template, **options)

    async def prepare(self, request: Request, prompts: Sequence[Prompt], params: SamplingParams, *,
                      add_special_tokens: bool) -> list[PreparedRequest]:
        """Prompts and parameters checked against the model and this server's options. Raises RequestError or
        QueueFullError; ClientGoneError when the client leaves while it takes long."""
        for name, value in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if value is not None and value > self.options.max_logprobs:
                raise RequestError(f"{name} must be at most {self.options.max_logprobs} on this server, got {value}",
                                   name)
        check_copies(params, len(prompts) * params.n)
        work = self.llm.prepare(prompts, params, clip_max_tokens=False, add_special_tokens=add_special_tokens)
        return await (until_gone(request.receive, work) if takes_long(prompts, params) else work)

    def submit(self, requests: Sequence[PreparedRequest], *, stream: bool, timeout: float | None = None,
               priority: int = 0, cache_salt: str = "") -> OutputStream:
        """Hand prepared requests to the engine, as AsyncLLM.submit does. Raises QueueFullError or EngineDeadError where
        the queue was filled, or the engine ended, after the request had been let in."""
        return self.llm.submit(requests, priority=priority, cache_salt=cache_salt, stream=stream,
                               timeout=timeout or self.options.default_timeout)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids, however many fit. Raises RequestError for a text that is too long even to count."""
        limit = max(MAX_COUNTED_CHARS, CHARS_PER_TOKEN * self.llm.info.max_model_len)
        if len(text) > limit:
            raise RequestError(f"prompt has {len(text)} characters; at most {limit} are tokenized", "prompt")
        return await self.llm.encode(text, add_special_tokens)


def _effort(template: ChatTemplate, effort: str, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """The template's own switch for reasoning_effort. Raises RequestError when it has none."""
    if template.reads("reasoning_effort", tools):
        return {"reasoning_effort": effort}
    if template.reads("enable_thinking", tools):
        return {"enable_thinking": effort != "none"}
    raise RequestError("reasoning_effort: the chat template of this model has no switch for it", "reasoning_effort")


@dataclass(slots=True)
class Usage:
    """Counts tokens of a request: each prompt once, however many completions it has."""

    prompt_tokens: int
    num_per_prompt: int  # completions
    completion_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)  # by prompt

    @classmethod
    def of(cls, requests: Sequence[PreparedRequest]) -> Usage:
        return cls(sum(len(request.prompt_token_ids) for request in requests), requests[0].params.n)

    def add(self, delta: CompletionDelta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.num_cached_tokens and delta.index % self.num_per_prompt == 0:  # the others find the first one's prompt
            self.cached[delta.index // self.num_per_prompt] = delta.num_cached_tokens

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


@dataclass(frozen=True)
class Envelope:
    """The fields that every chunk or body of one answer repeats."""

    id: str
    object: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, object_name: str, model: str, request: Request, request_id: str | None) -> Envelope:
        """The id ends in the client's name for its request, where it gave one (X-Request-Id, or the field)."""
        own = client_request_id(request.scope) or request_id or uuid.uuid4().hex
        return cls(f"{prefix}-{own}", object_name, int(time.time()), model)

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": self.object, "created": self.created, "model": self.model, "choices": choices,
                **more}


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def check(delta: CompletionDelta) -> None:
    """Raises for a completion that ended for a reason that is not the model's: RequestError where a field of the
    request made it fail, else GenerationError."""
    if delta.finish_reason == "error" and delta.error_param is not None:
        raise RequestError(delta.error or "the request cannot be served", delta.error_param)
    if delta.finish_reason == "error":
        raise GenerationError(delta.error or "the engine failed on this request")
    if delta.finish_reason == "abort":
        raise GenerationError("the request was aborted")


async def whole(output: OutputStream, request: Request) -> list[CompletionDelta]:
    """All completions, each in one piece, in the order of their index; aborted as soon as the client goes away."""

    async def collect() -> list[CompletionDelta]:
        found = []
        async for deltas in output:
            for delta in deltas:
                check(delta)
                found.append(delta)
        return sorted(found, key=lambda delta: delta.index)

    try:
        return await until_gone(request.receive, collect())
    finally:
        output.close()
