"""POST /v1/completions"""

from fastapi import APIRouter, Request, Response

from server.answer.formats import CompletionFormat
from server.answer.intake import begin, ignored_header
from server.answer.streaming import deliver
from server.errors import GENERATED, documented
from server.http.jsonbody import JsonRoute
from server.protocol.chunk import CompletionChunk, streamed
from server.protocol.completion import CompletionRequest, CompletionResponse

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses={200: streamed(CompletionChunk), **documented(*GENERATED)},
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Complete prompts, with ``sparsity`` of the feed-forward neurons left out."""
    intake, headers = begin(body, request, len(body.prompt)), ignored_header(body)
    generation = await intake.queue(body.prompt, body.add_special_tokens is not False, opens=False)
    format = CompletionFormat(generation, logprobs=body.logprobs is not None)
    return await deliver(generation, format, request, body, headers)
