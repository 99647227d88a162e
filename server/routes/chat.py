"""POST /v1/chat/completions"""

from fastapi import Request, Response

from server.answer.formats.chat import ChatFormat
from server.protocol.chat import ChatRequest, ChatResponse
from server.protocol.chunk import CHAT_STREAM
from server.routes.conversation import answer
from server.routes.generating import GeneratingRouter

router = GeneratingRouter()


@router.generates("/v1/chat/completions", ChatResponse, CHAT_STREAM)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation. The model's own chat template makes the prompt."""
    special = bool(body.add_special_tokens)
    return await answer(body, request, lambda made: ChatFormat(made, body), add_special_tokens=special)
