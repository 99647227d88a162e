"""POST /v1/completions"""

import asyncio
import logging
import time
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from griffin.errors import ContextLengthExceeded
from server.errors import InvalidField, reason
from server.protocol import CompletionRequest, CompletionResponse, ErrorResponse
from server.service import ServedModel, Service
from server.streaming import Completion, EventStream
from server.text import encode
from server.worker import Job

logger = logging.getLogger("griffin")
router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "a field is wrong; the error names it",
        404: "another model is served",
        429: "the queue is full; see Retry-After",
        500: "a fault of the server",
        503: "loading or shutting down; see Retry-After",
    }.items()
}
# Longer texts take the tokenizer milliseconds, in which no other request's token could be sent.
LONG_TEXT = 20_000
# In characters; no vocabulary in use has a longer one. Texts beyond cost seconds and gigabytes to tokenize.
LONGEST_TOKEN = 128
HEADER_KEYS = 16


@router.post("/v1/completions", response_model=CompletionResponse, responses=ERRORS)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Complete a prompt, with ``sparsity`` of the feed-forward neurons left out."""
    service: Service = request.app.state.service
    arrived = time.monotonic()
    try:
        _require_built(body)
        model = service.model(body.model)
        job = await _submit(body, model, service.settings.sparsity, arrived)
    except Exception as refusal:
        service.metrics.rejected.labels(reason(refusal)).inc()
        raise
    completion = Completion(job, model, service.metrics, body.stop_strings(), body.sparsity)
    headers = _ignored_header(body)
    if body.stream:
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(completion, request, include_usage, headers)
    answer = await completion.response(request)
    if answer is None:
        # Nobody reads this; 499 is what proxies log for a client that left.
        return Response(status_code=499)
    return JSONResponse(answer.model_dump(), headers=headers)


async def _submit(body: CompletionRequest, model: ServedModel, default_sparsity: float, arrived: float) -> Job:
    """From a valid body to a queued job. The queue is asked first: tokenizing costs more than a refusal."""
    model.workers.require_room()
    prompt_ids = body.prompt if isinstance(body.prompt, list) else await _encode(model, body.prompt)
    room = model.workers.engine.context_length - len(prompt_ids)
    return model.workers.submit(prompt_ids, body.sampling(room), body.pruning(default_sparsity), arrived)


def _require_built(body: CompletionRequest) -> None:
    if (field := body.not_built()) is not None:
        raise InvalidField(f"{field} is not supported yet; leave it out", field, "unsupported_parameter")
    if body.stream_options and not body.stream:
        raise InvalidField("stream_options: only with stream=true", "stream_options")


async def _encode(model: ServedModel, text: str) -> list[int]:
    tokenizer, context = model.tokenizer, model.workers.engine.context_length
    if len(text) > context * LONGEST_TOKEN:
        raise ContextLengthExceeded(
            f"this model's context is {context} tokens, and {len(text)} characters are surely more; shorten the prompt",
            "prompt",
        )
    if len(text) > LONG_TEXT:
        return await asyncio.to_thread(encode, tokenizer, text)
    return encode(tokenizer, text)


def _ignored_header(body: CompletionRequest) -> dict[str, str]:
    """Unknown keys are common and harmless, but a misspelt ``sparsity`` must not go unseen."""
    names = [quote(name[:64].encode("utf-8", "replace")) for name in body.ignored()]
    if not names:
        return {}
    listed = ",".join(names[:HEADER_KEYS] + ["..."] * (len(names) > HEADER_KEYS))
    logger.warning("ignored unknown fields: %s", listed)
    return {"x-griffin-ignored": listed}
