"""POST /v1/chat/completions"""

from fastapi import Request, Response

from server.answer.formats.chat import ChatFormat
from server.answer.ignored import ignored_header
from server.answer.intake import begin
from server.answer.prompts import render
from server.answer.streaming import deliver
from server.protocol.chat import ChatRequest, ChatResponse
from server.protocol.chunk import CHAT_STREAM
from server.routes.generating import GeneratingRouter

router = GeneratingRouter()


@router.generates("/v1/chat/completions", ChatResponse, CHAT_STREAM)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation. The model's own chat template makes the prompt."""
    async with begin(body, request, 1) as intake:
        prompt = await render(intake.model, body)
        # The template has written the special tokens already.
        generation = await intake.queue([prompt], bool(body.add_special_tokens), opens=True, offered=body.offered())
    format = ChatFormat(generation, body)
    return await deliver(generation, format, request, stream=bool(body.stream), headers=ignored_header(body))
