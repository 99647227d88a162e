"""POST /tokenize, POST /detokenize, GET /tokenizer_info"""

from typing import Any

from fastapi import APIRouter, Request

from server.errors import ASKED, POSTED, InvalidField, documented
from server.intake import render, tokenize
from server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    TokenizeText,
)
from server.service import Service
from server.text import describe

router = APIRouter()


@router.post("/tokenize", responses=documented(*POSTED))
async def tokenize_text(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """The ids of a text, or of messages as the chat template puts them."""
    service: Service = request.app.state.service
    model, _ = service.resolve(body.model)
    if isinstance(body, TokenizeText):
        text, special = body.prompt, body.add_special_tokens is not False
    else:
        text, special = render(model, body), bool(body.add_special_tokens)
    ids = await tokenize(model, text, special)
    strings = model.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
    context = model.workers.engine.context_length
    return TokenizeResponse(count=len(ids), max_model_len=context, tokens=ids, token_strs=strings)


@router.post("/detokenize", responses=documented(*POSTED))
async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
    """The text of ids, special tokens included."""
    service: Service = request.app.state.service
    model, _ = service.resolve(body.model)
    highest = model.workers.engine.vocabulary_size - 1
    if max(body.tokens, default=0) > highest:
        raise InvalidField(f"tokens: this model has ids 0 to {highest}", "tokens")
    return DetokenizeResponse(prompt=model.tokenizer.decode(body.tokens, skip_special_tokens=False))


@router.get("/tokenizer_info", responses=documented(*ASKED))
async def tokenizer_info(request: Request) -> TokenizerInfo:
    """What a client needs to know to build prompts of its own."""
    service: Service = request.app.state.service
    model = service.model()
    info: dict[str, Any] = describe(model.tokenizer)
    return TokenizerInfo(**info, model_max_length=model.workers.engine.context_length)
