"""What the routes of conversations share: from a valid body to a response."""

from collections.abc import Callable

from fastapi import Request, Response

from server.answer.formats.format import Format
from server.answer.generation import Generation
from server.answer.ignored import ignored_header
from server.answer.intake import begin
from server.answer.prompts import render
from server.answer.streaming import deliver
from server.protocol.anthropic import MessagesRequest
from server.protocol.chat import ChatRequest
from server.protocol.responses import ResponsesRequest


async def answer(
    body: ChatRequest | ResponsesRequest | MessagesRequest,
    request: Request,
    format: Callable[[Generation], Format],
    *,
    add_special_tokens: bool = False,
) -> Response:
    """Put a conversation to the model by its chat template, and answer it.

    Args:
        format: writes the answer as the API has it.
        add_special_tokens: the tokenizer adds its own to those that the template has written.
    """
    async with begin(body, request, 1) as intake:
        prompt = await render(intake.model, body)
        generation = await intake.queue([prompt], add_special_tokens, opens=True, offered=body.offered())
    headers = ignored_header(body)
    return await deliver(generation, format(generation), request, stream=bool(body.stream), headers=headers)
