"""POST /v1/chat/completions"""

from fastapi import APIRouter, Request, Response

from server.answer.formats import ChatFormat
from server.answer.intake import begin, ignored_header, render
from server.answer.streaming import deliver
from server.errors import GENERATED, documented
from server.http.jsonbody import JsonRoute
from server.protocol.chat import ChatRequest, ChatResponse
from server.protocol.chunk import ChatChunk, streamed

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/chat/completions", response_model=ChatResponse, responses={200: streamed(ChatChunk), **documented(*GENERATED)}
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, put to the model by its own chat template."""
    intake, headers = begin(body, request, 1), ignored_header(body)
    prompt = await render(intake.model, body)
    # The template has written the special tokens already.
    generation = await intake.queue([prompt], bool(body.add_special_tokens), opens=True)
    return await deliver(generation, ChatFormat(generation), request, body, headers)
