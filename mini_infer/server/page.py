"""The page at `/`: files of this package, read once. What is not one of them cannot be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

ASSETS_PATH = "/web/"
TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    # Nothing from elsewhere, nothing inline, and no text that becomes markup.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                               "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # ask each time; the ETag makes that cheap
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    media_type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """The page's files by name."""
    assets = {}
    for file in (files("mini_infer.server") / "web").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            assets[file.name] = Asset(content, kind, f'"{sha256(content).hexdigest()[:24]}"')
    return assets


def page_routes() -> APIRouter:
    """`/` is index.html; the other files are below `/web/`. They are no part of the API's schema."""
    router = APIRouter(include_in_schema=False)
    assets = load_assets()

    def answer(name: str, request: Request) -> Response:
        asset = assets.get(name)
        if asset is None:
            raise HTTPException(404)
        headers = {**HEADERS, "etag": asset.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if asset.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.media_type)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return answer("index.html", request)

    @router.api_route(ASSETS_PATH + "{name}", methods=["GET", "HEAD"])
    async def asset(name: str, request: Request) -> Response:
        return answer(name, request)

    return router
