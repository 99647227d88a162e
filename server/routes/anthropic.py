"""POST /v1/messages, POST /v1/messages/count_tokens"""

from fastapi import Request, Response

from server.answer.formats.anthropic import AnthropicFormat
from server.answer.ignored import ignored_header
from server.answer.prompts import render, tokenize
from server.errors import ANTHROPIC, POSTED
from server.protocol.anthropic import CountedTokens, CountTokensRequest, MessagesRequest
from server.protocol.anthropic_object import ANTHROPIC_STREAM, AnthropicMessage
from server.routes.conversation import answer
from server.routes.generating import GeneratingRouter
from server.service import Service

router = GeneratingRouter(ANTHROPIC)


@router.generates("/v1/messages", AnthropicMessage, ANTHROPIC_STREAM)
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation: Anthropic's API."""
    return await answer(body, request, AnthropicFormat)


@router.post("/v1/messages/count_tokens", responses=ANTHROPIC.documented(*POSTED))
async def count_tokens(body: CountTokensRequest, request: Request, response: Response) -> CountedTokens:
    """Count the tokens of a conversation's prompt."""
    service: Service = request.app.state.service
    async with service.resolve(body.model) as (model, _):
        (ids,) = await tokenize(model, [await render(model, body)], add_special_tokens=False)
    response.headers.update(ignored_header(body))
    return CountedTokens(input_tokens=len(ids))
