"""POST /tokenize, POST /detokenize, GET /tokenizer_info"""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.answer.ignored import ignored_header
from server.answer.prompts import render, tokenize
from server.errors import ASKED, POSTED, InvalidField, documented
from server.http.jsonbody import JsonRoute
from server.jsonwire import encode_model
from server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    TokenizeText,
)
from server.service import Service
from server.text.tokenizer import tokenizer_info as info_of

router = APIRouter(route_class=JsonRoute)


@router.post("/tokenize", response_model=TokenizeResponse, responses=documented(*POSTED))
async def tokenize_text(body: TokenizeRequest, request: Request) -> Response:
    """The ids of a text, or of messages after the chat template."""
    service: Service = request.app.state.service
    async with service.resolve(body.model) as (model, _):
        if isinstance(body, TokenizeText):
            text, special = body.prompt, body.add_special_tokens is not False
        else:
            text, special = await render(model, body), bool(body.add_special_tokens)
        (ids,) = await tokenize(model, [text], special)

        def answer() -> bytes:
            strings = model.tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
            context = model.engine.context_length
            counted = TokenizeResponse(count=len(ids), max_model_len=context, tokens=ids, token_strs=strings)
            return encode_model(counted)

        content = await model.worked_out(len(ids), answer)
        return Response(content, media_type="application/json", headers=ignored_header(body))


@router.post("/detokenize", responses=documented(*POSTED))
async def detokenize(body: DetokenizeRequest, request: Request, response: Response) -> DetokenizeResponse:
    """The text of ids, special tokens included."""
    service: Service = request.app.state.service
    async with service.resolve(body.model) as (model, _):
        highest = model.engine.vocabulary_size - 1
        if max(body.tokens, default=0) > highest:
            raise InvalidField(f"tokens: this model has ids 0 to {highest}", "tokens")
        response.headers.update(ignored_header(body))
        decode = partial(model.tokenizer.decode, skip_special_tokens=False)
        return DetokenizeResponse(prompt=await model.worked_out(len(body.tokens), decode, body.tokens))


@router.get("/tokenizer_info", responses=documented(400, 404, *ASKED))
async def tokenizer_info(request: Request, model: str | None = None) -> TokenizerInfo:
    """What a client needs to build its own prompts, for the first model or the named one."""
    service: Service = request.app.state.service
    async with service.resolve(model) as (served, _):
        return TokenizerInfo(**info_of(served.tokenizer), model_max_length=served.engine.context_length)
