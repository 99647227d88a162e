"""GET /health, /ready, /metrics"""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.protocol import ErrorResponse
from server.service import Service

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive, whether or not it can answer yet."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"model": ErrorResponse}})
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded and takes requests."""
    service: Service = request.app.state.service
    return {"status": "ready", "model": service.model().name}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
