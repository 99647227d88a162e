"""GET /v1/models"""

from typing import Any

from fastapi import APIRouter, Request

from griffin import Sampling
from griffin.method.methods import METHODS
from server.errors import ASKED, documented
from server.protocol.fields import SparsityChoice
from server.protocol.model import ModelCard, ModelList, Parameters, SamplingDefaults, TokenBytes
from server.served import ServedModel, aliases
from server.service import Service
from server.settings import ALIAS

router = APIRouter()


@router.get("/v1/models", responses=documented(*ASKED))
async def list_models(request: Request) -> ModelList:
    """Each served model under each of its names, and the aliases of its first name."""
    service: Service = request.app.state.service
    service.require_open()
    names = [name for slot in service.models.slots for name in (*slot.names, *aliases(slot.name))]
    return ModelList(data=[_card(service, name) for name in names])


@router.get("/v1/models/{name:path}", responses=documented(400, 404, *ASKED))
async def retrieve_model(name: str, request: Request) -> ModelCard:
    """A model by one of its names, or an alias of it at any sparsity. This does not load the model."""
    service: Service = request.app.state.service
    service.require_open()
    return _card(service, name)


def _card(service: Service, name: str) -> ModelCard:
    slot, alias_sparsity = service.models.find(name)
    own = name if alias_sparsity is None else name.rpartition(ALIAS)[0]
    sparsity = service.settings.sparsity if alias_sparsity is None else alias_sparsity
    return ModelCard(
        id=name,
        created=slot.created,
        root=slot.name,
        parent=None if alias_sparsity is None else own,
        loaded=slot.served is not None,
        sparsity=sparsity,
        aliases=aliases(own),
        **({} if slot.served is None else _size(service, slot.served, sparsity)),
    )


def _size(service: Service, model: ServedModel, sparsity: SparsityChoice) -> dict[str, Any]:
    """Fields that only a loaded model has."""
    accounting, (active, active_bytes) = model.engine.accounting, _reads(service, model, sparsity)
    return {
        "max_model_len": model.engine.context_length,
        "sampling_defaults": _sampling_defaults(model),
        "parameters": Parameters(total=accounting.total, feed_forward=accounting.feed_forward, active=active),
        "bytes_per_token": TokenBytes(
            total=accounting.weight_bytes, feed_forward=accounting.feed_forward_bytes, active=active_bytes
        ),
    }


def _sampling_defaults(model: ServedModel) -> SamplingDefaults:
    neutral = Sampling()
    values = {name: getattr(neutral, name) for name in SamplingDefaults.model_fields} | {"max_tokens": None}
    return SamplingDefaults(**values | dict(model.sampling_defaults))


def _reads(service: Service, model: ServedModel, sparsity: SparsityChoice) -> tuple[int, int] | tuple[None, None]:
    """Parameters and bytes that a token reads with the default method, as planned."""
    if sparsity == "auto":
        # With sparsity auto, the number depends on the prompt.
        return None, None
    return METHODS[service.settings.method].reads(sparsity, model.engine.accounting)
