"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, 400 for what the client got wrong; on the
routes of Anthropic's API in its form: `{"type": "error", "error": {"type", "message"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from mini_infer.engine.client import EngineDeadError
from mini_infer.engine.streams import DeadlineError, GenerationError, QueueFullError
from mini_infer.protocol import RequestError
from mini_infer.server.schemas import UNSUPPORTED, renamed

INVALID = "invalid_request_error"
_BY_STATUS = {401: "authentication_error", 404: "not_found_error", 405: INVALID, 413: INVALID,
              429: "rate_limit_error", 503: "service_unavailable_error", 504: "timeout_error"}
ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
                    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}
CLIENT_GONE = 499  # nginx's number for it; nobody reads it
CUT_SHORT = "mini_infer.cut_short"  # in a scope: the status of an error that came in the middle of a stream
_RETRY_AFTER = {429: "1", 503: "10"}  # seconds
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
MAX_MESSAGE_CHARS = 1000  # a message quotes what was sent, which may be long


class ModelNotFoundError(Exception):
    """The request names a model that is not served here."""

    def __init__(self, name: str):
        super().__init__(f"The model {name!r} does not exist.")


class RefusedError(HTTPException):
    """What is wrong with a request before its body is known: FastAPI lets only HTTPException through there."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None):
        super().__init__(status, message, headers)
        self.body = error_body(message, param=param, code=code)


class DrainingError(Exception):
    """The server is about to end, and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete; nobody reads what we say to it."""


def error_body(message: str, kind: str = INVALID, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    message = _ADDRESS.sub("", message)
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "…"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic_body(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """An error of `error_body` in Anthropic's form."""
    kind = _ANTHROPIC_TYPES.get(status, INVALID if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


def error_response(scope: Scope, status: int, body: dict[str, Any],
                   headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed, in the form of the API that its route belongs to."""
    if scope["path"].removeprefix(scope.get("root_path", "")).startswith(ANTHROPIC_PATH):
        body = anthropic_body(status, body)
    headers = dict(headers or {})
    if status in _RETRY_AFTER:
        headers.setdefault("Retry-After", _RETRY_AFTER[status])
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def body_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an exception; what is not the client's fault says nothing about our insides."""
    if isinstance(error, RequestError):
        return 400, error_body(str(error), param=error.param, code=error.code)
    if isinstance(error, ModelNotFoundError):
        return 404, error_body(str(error), param="model", code="model_not_found")
    if isinstance(error, EngineDeadError):
        return 503, error_body(str(error), _BY_STATUS[503], code="engine_dead")
    if isinstance(error, DrainingError):
        return 503, error_body(str(error), _BY_STATUS[503], code="draining")
    if isinstance(error, QueueFullError):
        return 429, error_body(str(error), _BY_STATUS[429], code="queue_full")
    if isinstance(error, DeadlineError):
        return 504, error_body(str(error), _BY_STATUS[504], code="timeout")
    if isinstance(error, GenerationError):
        return 500, error_body(str(error), "server_error", code="generation_failed")
    return 500, error_body("internal error", "server_error", code="internal_error")


def install(app: FastAPI) -> None:
    """Give every error of `app` the same form."""

    async def by_type(request: Request, error: Exception) -> Response:
        return error_response(request.scope, *body_of(error))

    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def validation(request: Request, error: RequestValidationError) -> Response:
        message, param = describe(error.errors())
        return error_response(request.scope, 400, error_body(message, param=param))

    async def http(request: Request, error: HTTPException) -> Response:
        kind = _BY_STATUS.get(error.status_code, INVALID)
        body = error.body if isinstance(error, RefusedError) else error_body(error.detail, kind)
        headers = error.headers
        if headers == {"Allow": "GET"}:  # what routes say; gate.Heads makes it more
            headers = {"Allow": "GET, HEAD"}
        return error_response(request.scope, error.status_code, body, headers)

    for kind in (RequestError, ModelNotFoundError, EngineDeadError, DrainingError, QueueFullError, GenerationError,
                 Exception):
        app.add_exception_handler(kind, by_type)
    app.add_exception_handler(ClientGoneError, nobody)
    app.add_exception_handler(RequestValidationError, validation)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]


def describe(errors: Sequence[Any]) -> tuple[str, str | None]:
    """One message and the name of the field for pydantic's list of errors: the first field that is wrong.

    A field of several types fails once for each of them; the failure that got furthest into the value is meant.
    """
    root = errors[0]["loc"][:2]
    first = max((error for error in errors if error["loc"][:2] == root), key=lambda error: len(error["loc"]))
    if first["type"] == "json_invalid":
        return "the request body is not valid JSON", None
    param = field_name(first["loc"])
    if isinstance(cause := first.get("ctx", {}).get("error"), RequestError):  # raised by one of our validators
        if param is not None and cause.param is not None:
            cause = renamed(cause, f"{param}{cause.param}" if cause.param[0] == "[" else f"{param}.{cause.param}")
        return str(cause), cause.param
    if param is None:
        return "the request body must be a JSON object with content-type application/json", None
    leaf = param.rpartition(".")[2]
    if first["type"] == "extra_forbidden":
        reason = UNSUPPORTED.get(leaf)
        return (f"unknown field: {param}" if reason is None else f"{param} is not supported: {reason}"), param
    if first["type"] == "missing":
        return f"{param} is missing", param
    messages = dict.fromkeys(e["msg"] for e in errors if field_name(e["loc"]) == param)
    return f"{param}: {'; or '.join(messages)}", param


def field_name(loc: tuple[Any, ...]) -> str | None:
    """("body", "messages", 0, "role") is "messages[0].role". Names of union branches (types, classes) are left out."""
    name = ""
    for part in loc[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif re.fullmatch(r"[a-z_][a-z0-9_]*", part) and part not in ("str", "int", "float", "bool", "none"):
            name += f".{part}" if name else part
        elif not name:
            name = part[:64]
    return name or None
