"""POST /v1/responses; GET and DELETE of a response, which are always 404."""

from typing import NoReturn

from fastapi import Request, Response

from server.answer.formats.responses import ResponsesFormat
from server.answer.ignored import ignored_header
from server.answer.intake import begin
from server.answer.prompts import render
from server.answer.streaming import deliver
from server.errors import ResponseNotFound
from server.protocol.response_object import RESPONSE_STREAM, ResponseObject
from server.protocol.responses import ResponsesRequest
from server.routes.generating import GeneratingRouter

router = GeneratingRouter()


@router.generates("/v1/responses", ResponseObject, RESPONSE_STREAM)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer an input: OpenAI's newer API. The server keeps nothing, so each request sends the whole conversation."""
    async with begin(body, request, 1) as intake:
        prompt = await render(intake.model, body)
        # The template has written the special tokens already.
        generation = await intake.queue([prompt], add_special_tokens=False, opens=True, offered=body.offered())
    format = ResponsesFormat(generation, body)
    return await deliver(generation, format, request, stream=bool(body.stream), headers=ignored_header(body))


@router.get("/v1/responses/{response_id}", include_in_schema=False, response_model=None)
@router.delete("/v1/responses/{response_id}", include_in_schema=False, response_model=None)
async def find_response(response_id: str) -> NoReturn:
    """404: this server keeps no responses."""
    raise ResponseNotFound(response_id)
