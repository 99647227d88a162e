"""GET /v1/griffin/experts/{expert_set}"""

from fastapi import APIRouter, Request, Response

from griffin.neurons import Kept
from server.errors import ASKED, ExpertsNotFound, documented
from server.jsonwire import encode_model
from server.protocol.experts import ExpertSet
from server.served import ServedModel
from server.service import Service
from server.work.experts import KnownExperts

router = APIRouter()


@router.get("/v1/griffin/experts/{expert_set}", response_model=ExpertSet, responses=documented(404, *ASKED))
async def experts(expert_set: str, request: Request) -> Response:
    """The neurons that a recent request used. `expert_set` is in the report of its answer."""
    service: Service = request.app.state.service
    service.require_started()
    found = ((model, known) for model in service.models.loaded if (known := model.experts.find(expert_set)))
    model, known = next(found, (None, None))
    if model is None or known is None:
        raise ExpertsNotFound(expert_set)
    # Encoded here: FastAPI would encode on the event loop, and a large model keeps half a million neurons.
    chosen = known.selection.chosen
    size = chosen.count if isinstance(chosen, Kept) else 0
    content = await model.worked_out(size, _json, model, known)
    return Response(content, media_type="application/json")


def _json(model: ServedModel, known: KnownExperts) -> bytes:
    accounting, selection = model.engine.accounting, known.selection
    kept = selection.chosen.layers if isinstance(selection.chosen, Kept) else None
    report = ExpertSet(
        expert_set=selection.expert_set,
        model=model.name,
        layers=accounting.layers,
        neurons_per_layer=accounting.width,
        method=known.pruning.method,
        kept_per_layer=None if kept is None else [len(kept_k) for kept_k in kept],
        prompt_tokens=selection.prompt_tokens,
        kept=None if kept is None else [kept_k.tolist() for kept_k in kept],
    )
    return encode_model(report)
