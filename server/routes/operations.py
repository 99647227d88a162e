"""GET /health, /ready, /metrics, /version"""

from importlib.metadata import version as installed

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.errors import documented
from server.service import Service

router = APIRouter()
PATHS = ("/health", "/ready", "/metrics", "/version")


@router.head("/health", include_in_schema=False)
@router.get("/health", responses=documented(401, 503))
async def health(request: Request) -> dict[str, str]:
    """The process is alive, whether or not it can answer requests. 503 if only a restart can help."""
    service: Service = request.app.state.service
    service.require_hope()
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses=documented(401, 503))
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded and works, and the server accepts requests."""
    service: Service = request.app.state.service
    return {"status": "ready", "model": service.require_ready()}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401)},
)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", responses=documented(401))
async def version() -> dict[str, str]:
    """The version of this server."""
    return {"version": installed("griffin-server")}
