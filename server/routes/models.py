"""GET /v1/models"""

from fastapi import APIRouter, Request

from griffin import Sampling
from server.errors import ASKED, documented
from server.protocol.fields import SparsityChoice
from server.protocol.model import ModelCard, ModelList, Parameters, SamplingDefaults, TokenBytes
from server.served import ServedModel, aliases
from server.service import Service
from server.settings import ALIAS

router = APIRouter()


@router.get("/v1/models", responses=documented(*ASKED))
async def list_models(request: Request) -> ModelList:
    """The one model that is served, by each of its names, and the aliases of the first."""
    service: Service = request.app.state.service
    model = service.model()
    return ModelList(data=[_card(service, name) for name in (*model.names, *aliases(model.name))])


@router.get("/v1/models/{name:path}", responses=documented(400, 404, *ASKED))
async def retrieve_model(name: str, request: Request) -> ModelCard:
    """The model by one of its names, or an alias of it at any sparsity."""
    return _card(request.app.state.service, name)


def _card(service: Service, name: str) -> ModelCard:
    model, alias_sparsity = service.resolve(name)
    own = name if alias_sparsity is None else name.rpartition(ALIAS)[0]
    sparsity = service.settings.sparsity if alias_sparsity is None else alias_sparsity
    return ModelCard(
        id=name,
        created=model.created,
        root=model.name,
        parent=None if alias_sparsity is None else own,
        max_model_len=model.engine.context_length,
        sparsity=sparsity,
        sampling_defaults=_sampling_defaults(model),
        parameters=_parameters(model, sparsity),
        bytes_per_token=_bytes_per_token(model, sparsity),
        aliases=aliases(own),
    )


def _sampling_defaults(model: ServedModel) -> SamplingDefaults:
    neutral = Sampling()
    values = {name: getattr(neutral, name) for name in SamplingDefaults.model_fields} | {"max_tokens": None}
    return SamplingDefaults(**values | dict(model.sampling_defaults))


def _parameters(model: ServedModel, sparsity: SparsityChoice) -> Parameters:
    accounting = model.engine.accounting
    # Auto comes to a number only with a prompt.
    active = None if sparsity == "auto" else accounting.active(accounting.kept(sparsity))
    return Parameters(total=accounting.total, feed_forward=accounting.feed_forward, active=active)


def _bytes_per_token(model: ServedModel, sparsity: SparsityChoice) -> TokenBytes:
    accounting = model.engine.accounting
    active = None if sparsity == "auto" else accounting.bytes_per_token_at(sparsity)
    return TokenBytes(total=accounting.weight_bytes, feed_forward=accounting.feed_forward_bytes, active=active)
