"""POST /v1/responses; GET and DELETE of a response, which are always 404."""

from typing import NoReturn

from fastapi import Request, Response

from server.answer.formats.responses import ResponsesFormat
from server.errors import ResponseNotFound
from server.protocol.response_object import RESPONSE_STREAM, ResponseObject
from server.protocol.responses import ResponsesRequest
from server.routes.conversation import answer
from server.routes.generating import GeneratingRouter

router = GeneratingRouter()


@router.generates("/v1/responses", ResponseObject, RESPONSE_STREAM)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer an input: OpenAI's newer API. The server keeps nothing, so each request sends the whole conversation."""
    return await answer(body, request, lambda made: ResponsesFormat(made, body))


@router.get("/v1/responses/{response_id}", include_in_schema=False, response_model=None)
@router.delete("/v1/responses/{response_id}", include_in_schema=False, response_model=None)
async def find_response(response_id: str) -> NoReturn:
    """404: this server keeps no responses."""
    raise ResponseNotFound(response_id)
