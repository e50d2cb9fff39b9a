"""How routes read their JSON: as it arrives, within limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mini_infer.protocol import RequestError
from mini_infer.server.errors import CLIENT_GONE, RefusedError
from mini_infer.server.limits import JsonMeter, parse_json

M = TypeVar("M", bound=BaseModel)


class JsonRequest(Request):
    """A request whose body is JSON. What is wrong with it is raised as RefusedError."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            meter, pieces, refusal = JsonMeter(), [], None
            try:
                async for piece in self.stream():
                    if refusal is None:
                        try:
                            meter.feed(piece)
                            pieces.append(piece)
                        except RequestError as error:
                            refusal = RefusedError(400, str(error), error.param)
                            pieces.clear()  # the rest is read, not kept: many clients read no answer before they end
            except ClientDisconnect:
                raise RefusedError(CLIENT_GONE, "the client closed its connection") from None
            if refusal is not None:
                raise refusal
            self._body = b"".join(pieces)
        return self._body

    async def json(self) -> Any:
        try:
            return parse_json(await self.body())
        except RequestError as error:
            raise RefusedError(400, str(error), error.param) from None
        except json.JSONDecodeError:
            raise  # FastAPI's own form of it
        except ValueError:  # an integer of thousands of digits
            raise RefusedError(400, "the request body holds a number that is too long") from None


class JsonRoute(APIRoute):
    """A route that reads its body as JsonRequest does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handler


def json_router() -> APIRouter:
    """A router for routes with JSON bodies."""
    return APIRouter(route_class=JsonRoute)


def validated(model: type[M], body: Any) -> M:
    """A body as one of the models that a route may take; errors as if FastAPI had read it."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None
