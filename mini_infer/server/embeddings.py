"""POST /v1/embeddings: 501, said so that a client understands."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mini_infer.server.errors import error_body, error_response
from mini_infer.server.front import Front


def embedding_routes(front: Front) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", summary="Not available: the models served here generate text", status_code=501)
    async def create_embeddings(request: Request) -> Response:
        body = error_body(f"The model {front.model_names[0]!r} generates text and has no embeddings to give.",
                          "not_implemented_error", "model", "embeddings_not_supported")
        return error_response(request.scope, 501, body)

    return router
