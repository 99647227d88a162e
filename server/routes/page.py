"""GET / and /page/...: the page to try and compare sparsities, and its files."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from server.errors import ApiError
from server.service import Service

INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # A browser asks each time and usually gets a 304, so page and server always have the same version.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, as it is sent."""

    content: bytes
    media_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """All files of the page, by name. Files of other types are left out."""
    found: dict[str, Asset] = {}
    for file in (files("server") / "page").iterdir():
        media_type = MEDIA_TYPES.get(file.name[file.name.rfind(".") :])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return found


class PageRoutes:
    """Reads the page's files once, when it is created. ``paths``: the page's paths, which need no key."""

    def __init__(self) -> None:
        self._assets = read_assets()
        self.paths = ("/", "/page/state", *(f"/page/{name}" for name in self._assets))
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/", self._index, methods=["GET", "HEAD"])
        self.router.add_api_route("/page/state", _state, methods=["GET"])
        self.router.add_api_route("/page/{name}", self._asset, methods=["GET", "HEAD"])

    async def _index(self, request: Request) -> Response:
        return self._asset_response(request, INDEX)

    async def _asset(self, name: str, request: Request) -> Response:
        return self._asset_response(request, name)

    def _asset_response(self, request: Request, name: str) -> Response:
        if (asset := self._assets.get(name)) is None:
            raise HTTPException(404)
        headers = {**HEADERS, "ETag": asset.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if asset.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)


async def _state(request: Request) -> dict[str, object]:
    """What the page asks first. Always 200, because a browser logs every 503 as an error of the page."""
    service: Service = request.app.state.service
    trouble = None
    try:
        service.require_ready()
    except ApiError as error:
        trouble = str(error)
    return {
        "ready": trouble is None,
        "trouble": trouble,
        "needs_key": service.settings.api_keys is not None,
        "workers": service.settings.all_workers,
        "method": service.settings.method,
        "mode": service.settings.mode,
    }
