"""What every route needs: the engine, the names it is served under, and the parts that all answers share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mini_infer.engine.async_llm import AsyncLLM
from mini_infer.engine.streams import GenerationError, OutputStream
from mini_infer.server.errors import ModelNotFoundError
from mini_infer.server.metrics import ServerMetrics
from mini_infer.server.sse import until_gone
from mini_infer.text.door import PreparedRequest
from mini_infer.text.output import CompletionDelta


@dataclass(frozen=True)
class Front:
    """`model_names`: what clients may call the model; the first one is what we call it."""

    llm: AsyncLLM
    model_names: tuple[str, ...]
    metrics: ServerMetrics
    created: int = field(default_factory=lambda: int(time.time()))

    def model_name(self, asked: str | None) -> str:
        """The name to answer under. Raises ModelNotFoundError for a model that is not here."""
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            raise ModelNotFoundError(asked)
        return asked


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
    def new(cls, prefix: str, object_name: str, model: str) -> Envelope:
        return cls(f"{prefix}-{uuid.uuid4().hex}", object_name, int(time.time()), model)

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": self.object, "created": self.created, "model": self.model, "choices": choices,
                **more}


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def check(delta: CompletionDelta) -> None:
    """Raises GenerationError for a completion that ended for a reason that is not the model's."""
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
