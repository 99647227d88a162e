"""POST /v1/completions"""

from fastapi import Request, Response

from server.answer.formats.completion import CompletionFormat
from server.answer.ignored import ignored_header
from server.answer.intake import begin
from server.answer.prompts import with_gaps
from server.answer.streaming import deliver
from server.protocol.chunk import COMPLETION_STREAM
from server.protocol.completion import CompletionRequest, CompletionResponse
from server.routes.generating import GeneratingRouter

router = GeneratingRouter()


@router.generates("/v1/completions", CompletionResponse, COMPLETION_STREAM)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Complete prompts; generated tokens leave out the share ``sparsity`` of the feed-forward weights."""
    async with begin(body, request, len(body.prompt)) as intake:
        prompts = with_gaps(intake.model, body.prompt, body.suffix)
        generation = await intake.queue(prompts, body.add_special_tokens is not False, opens=False)
    format = CompletionFormat(generation, body)
    return await deliver(generation, format, request, stream=bool(body.stream), headers=ignored_header(body))
