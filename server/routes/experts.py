"""GET /v1/griffin/experts/{expert_set}"""

from fastapi import APIRouter, Request, Response

from griffin import Selection
from server.errors import ASKED, ExpertsNotFound, documented
from server.jsonwire import encode_model
from server.protocol.experts import ExpertSet
from server.served import ServedModel
from server.service import Service

router = APIRouter()


@router.get("/v1/griffin/experts/{expert_set}", response_model=ExpertSet, responses=documented(404, *ASKED))
async def experts(expert_set: str, request: Request) -> Response:
    """The neurons that a recent request ran with, by the `expert_set` of its answer."""
    service: Service = request.app.state.service
    model = service.known()
    if (known := model.experts.find(expert_set)) is None:
        raise ExpertsNotFound(expert_set)
    # Written here, not by FastAPI, which would do it on the event loop: a large model keeps half a million.
    content = await model.worked_out(known.selection.kept.count, _json, model, known.selection)
    return Response(content, media_type="application/json")


def _json(model: ServedModel, selection: Selection) -> bytes:
    accounting = model.engine.accounting
    known = ExpertSet(
        expert_set=selection.expert_set,
        model=model.name,
        layers=accounting.layers,
        neurons_per_layer=accounting.width,
        kept_per_layer=selection.kept.counts,
        prompt_tokens=selection.prompt_tokens,
        kept=[kept_k.tolist() for kept_k in selection.kept.layers],
    )
    return encode_model(known)
