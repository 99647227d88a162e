"""POST /v1/chat/completions"""

from fastapi import Request, Response

from server.answer.formats.chat import ChatFormat
from server.answer.ignored import ignored_header
from server.answer.intake import begin
from server.answer.prompts import render
from server.answer.streaming import deliver
from server.errors import InvalidField
from server.protocol.chat import ChatRequest, ChatResponse
from server.protocol.chunk import CHAT_STREAM
from server.routes.generating import GeneratingRouter
from server.text.tool_calls import CallReading

router = GeneratingRouter()


@router.generates("/v1/chat/completions", ChatResponse, CHAT_STREAM)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, put to the model by its own chat template."""
    intake, headers = begin(body, request, 1), ignored_header(body)
    prompt = await render(intake.model, body)
    offered = body.offered()
    if offered and offered.mode != "auto":
        raise InvalidField("tool_choice is not supported but for none and auto", "tool_choice", "unsupported_parameter")
    calls = CallReading(intake.model.tools.form, offered.names, offered.single) if offered else None
    # The template has written the special tokens already.
    generation = await intake.queue([prompt], bool(body.add_special_tokens), opens=True, calls=calls)
    format = ChatFormat(generation, body)
    return await deliver(generation, format, request, stream=bool(body.stream), headers=headers)
