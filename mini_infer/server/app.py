"""The HTTP application: routes to what the other files of this package do."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from mini_infer import __version__
from mini_infer.server import errors
from mini_infer.server.chat import chat_routes
from mini_infer.server.completions import completion_routes
from mini_infer.server.errors import ModelNotFoundError, error_body
from mini_infer.server.front import Front, json_response

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(front: Front) -> FastAPI:
    """The application around an engine that has been started."""
    # The interactive pages would load scripts from the network; /openapi.json is what tools need.
    app = FastAPI(title="mini-infer", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(chat_routes(front))
    app.include_router(completion_routes(front))

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

    @app.get("/health", summary="200 while the engine can serve")
    @app.get("/healthz", summary="The same")
    async def health() -> Response:
        error = front.llm.error
        if error is not None:
            return json_response({"status": "error", **error_body(str(error), "service_unavailable_error",
                                                                  code="engine_dead")}, 503)
        stats = front.llm.stats()
        model = "dry" if front.llm.sim is not None else front.model_names[0]
        return json_response({"status": "ok", "model": model, "version": __version__, "running": stats.running,
                              "waiting": stats.waiting})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(front.metrics.page(), headers={"content-type": METRICS_TYPE})

    @app.get("/version", summary="The server's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    return app
