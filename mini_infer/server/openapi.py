"""/openapi.json: FastAPI's account of the routes and their bodies, completed by what each may answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from mini_infer.server.answers import (
    AnswerModel,
    AnthropicError,
    AnthropicMessage,
    BadHealth,
    ChatCompletion,
    Completion,
    Detokenized,
    Error,
    Health,
    ModelCard,
    ModelList,
    TokenCount,
    Tokens,
    Version,
)
from mini_infer.server.errors import ANTHROPIC_PATH
from mini_infer.server.gate import OPEN_PATHS

REFUSALS = {
    400: "The request is wrong: the message says how, and param names the field",
    401: "The server has API keys, and the request none of them",
    404: "No such model",
    413: "The body is larger than the server takes",
    429: "The server is busy",
    500: "The engine failed on this request",
    501: "Not available: the models served here generate text",
    503: "The engine is not there, or the server is about to end, or it holds as many bytes as it may",
    504: "The request's time was over before it was answered",
}
READING = (400, 401, 404, 413, 503)  # of routes with a body
GENERATING = (*READING, 429, 500, 504)
EVENTS = {"itemSchema": {  # of one event (OpenAPI 3.2)
    "type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}, "required": ["data"]}}
TEXT = {"schema": {"type": "string"}}
RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Answers:
    """What a route answers: JSON by this model, or content by media type; and the refusals by status."""

    model: type[AnswerModel] | None
    refusals: tuple[int, ...] = (401,)
    content: dict[str, Any] = field(default_factory=dict)


ANSWERS = {
    "/v1/chat/completions": Answers(ChatCompletion, GENERATING, {"text/event-stream": EVENTS}),
    "/v1/completions": Answers(Completion, GENERATING, {"text/event-stream": EVENTS}),
    "/v1/messages": Answers(AnthropicMessage, GENERATING, {"text/event-stream": EVENTS}),
    "/v1/messages/count_tokens": Answers(TokenCount, READING),
    "/v1/embeddings": Answers(None, (401, 413, 501, 503)),
    "/tokenize": Answers(Tokens, READING),
    "/detokenize": Answers(Detokenized, READING),
    "/v1/engine/events": Answers(None, (401, 429, 503), {"text/event-stream": EVENTS}),
    "/v1/models": Answers(ModelList),
    "/v1/models/{model_id}": Answers(ModelCard, (401, 404)),
    "/health": Answers(Health, (503,)),
    "/healthz": Answers(Health, (503,)),
    "/metrics": Answers(None, content={"text/plain": TEXT}),
    "/version": Answers(Version),
}
KEYS = {"bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}


class DescribedApi(FastAPI):
    """An application whose schema says what its routes answer. `keys`: whether it wants one of its API keys."""

    def __init__(self, *, keys: bool, **options: Any):
        # The refusals are told below; without one here, FastAPI would tell of a 422, which nothing answers.
        super().__init__(responses={"4XX": {"description": "Refused"}}, **options)
        self._keys = keys

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            _complete(super().openapi(), self._keys)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(schema: dict[str, Any], keys: bool) -> None:
    """Put each route's answers, and the keys where there are any, into a schema of FastAPI's."""
    models = {answers.model for answers in ANSWERS.values() if answers.model is not None}
    models |= {Error, AnthropicError, BadHealth}
    _, found = models_json_schema([(model, "serialization") for model in sorted(models, key=str)], ref_template=REF)
    schema["components"]["schemas"] |= found["$defs"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(path, ANSWERS[path])
            if path in OPEN_PATHS:
                operation["security"] = []
    if keys:
        schema["components"]["securitySchemes"] = KEYS
        schema["security"] = [{name: []} for name in KEYS]


def _responses(path: str, answers: Answers) -> dict[str, Any]:
    content = answers.content if answers.model is None else answers.content | _json(answers.model)
    error: type[AnswerModel] = Error
    if path.startswith(ANTHROPIC_PATH):
        error = AnthropicError
    elif path in OPEN_PATHS:
        error = BadHealth
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}} if content else {}
    for status in answers.refusals:
        responses[str(status)] = {"description": REFUSALS[status], "content": _json(error)}
        if status in (429, 503) and error is not BadHealth:
            responses[str(status)]["headers"] = RETRY_AFTER
    return responses


def _json(model: type[AnswerModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}
