"""The HTTP application: routes to what the other files of this package do."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from mini_infer import __version__
from mini_infer.server import errors
from mini_infer.server.chat import chat_routes
from mini_infer.server.completions import completion_routes
from mini_infer.server.embeddings import embedding_routes
from mini_infer.server.errors import ModelNotFoundError, error_body
from mini_infer.server.feed import feed_routes
from mini_infer.server.front import Front, json_response
from mini_infer.server.gate import ApiKeys, BodyLimit, Heads, RequestIdHeaders
from mini_infer.server.launch import ServeOptions
from mini_infer.server.lifecycle import Lifecycle, Turnstile
from mini_infer.server.messages import message_routes
from mini_infer.server.openapi import DescribedApi
from mini_infer.server.page import page_routes
from mini_infer.server.tokenize import tokenize_routes

HEALTH = {"draining": "the server is shutting down", "stalled": "the engine makes no progress"}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(front: Front) -> FastAPI:
    """The application around an engine that has been started."""
    # The interactive pages would load scripts from the network; /openapi.json is what tools need.
    app = DescribedApi(title="mini-infer", version=__version__, docs_url=None, redoc_url=None,
                       redirect_slashes=False, keys=bool(front.options.api_key))
    app.root_path = front.options.root_path  # whether the proxy cuts it off or not, unlike uvicorn's own
    errors.install(app)
    _add_gate(app, front.options, front.life)
    app.include_router(chat_routes(front))
    app.include_router(completion_routes(front))
    app.include_router(embedding_routes(front))
    app.include_router(message_routes(front))
    app.include_router(tokenize_routes(front))
    app.include_router(feed_routes(front.feed))
    app.include_router(page_routes())

    def card(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": front.created, "owned_by": "mini-infer", "parent": None,
                "max_model_len": front.llm.info.max_model_len}

    @app.get("/v1/models", summary="The models served here")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [card(name) for name in front.model_names]})

    @app.get("/v1/models/{model_id:path}", summary="One model")
    async def get_model(model_id: str) -> Response:
        if model_id not in front.model_names:
            raise ModelNotFoundError(model_id)
        return json_response(card(model_id))

    @app.get("/health", summary="200 while requests are taken (readiness)")
    async def health() -> Response:
        return health_response(front.life.state == "ok")

    @app.get("/healthz", summary="200 while the engine makes progress, or is about to again (liveness)")
    async def healthz() -> Response:
        return health_response(front.life.alive)

    def health_response(good: bool) -> Response:
        stats, state = front.llm.stats(), front.life.state
        model = "dry" if front.llm.sim is not None else front.model_names[0]
        body = {"status": state, "model": model, "version": __version__, "running": stats.running,
                "waiting": stats.waiting}
        if good:
            return json_response(body)
        message = str(front.llm.error or HEALTH[state])
        return json_response({**body, **error_body(message, "service_unavailable_error",
                                                   code="engine_dead" if state == "error" else state)}, 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(front.metrics.page(), headers={"content-type": METRICS_TYPE})

    @app.get("/version", summary="The server's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    return app


def _add_gate(app: FastAPI, options: ServeOptions, life: Lifecycle) -> None:
    """What requests pass before they reach a route; added from the inside out."""
    app.add_middleware(Heads)
    app.add_middleware(BodyLimit, max_size=options.max_body_size)
    app.add_middleware(Turnstile, life=life)
    if options.api_key:
        app.add_middleware(ApiKeys, keys=options.api_key)
    if options.allowed_origins:  # outside the keys: a browser's preflight has none
        app.add_middleware(
            CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers, allow_credentials=options.allow_credentials)
    if options.enable_request_id_headers:
        app.add_middleware(RequestIdHeaders)
