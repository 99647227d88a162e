"""GET /v1/models"""

from fastapi import APIRouter, Request

from server.protocol import ErrorResponse, ModelCard, ModelList
from server.service import Service

router = APIRouter()


@router.get("/v1/models", responses={503: {"model": ErrorResponse}})
async def list_models(request: Request) -> ModelList:
    """The one model that is served."""
    service: Service = request.app.state.service
    model = service.model()
    context = model.workers.engine.context_length
    return ModelList(data=[ModelCard(id=model.name, created=model.created, max_model_len=context)])
