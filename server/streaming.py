"""A job's tokens become what the client reads: one completion object, or server-sent events."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from griffin import Selection
from server.errors import ServerDraining, as_api_error
from server.metrics import Metrics, sparsity_label
from server.protocol import Choice, CompletionResponse, GriffinReport, TimingReport, Usage
from server.service import ServedModel
from server.text import TextStream
from server.worker import Job

logger = logging.getLogger("griffin")

SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token; ``finish_reason`` on the last."""

    text: str
    finish_reason: Literal["stop", "length"] | None


class EventStream(StreamingResponse):
    """The response around ``Completion.events``. A client that leaves before the first event is noticed here."""

    def __init__(
        self, completion: "Completion", request: Request, include_usage: bool, headers: dict[str, str]
    ) -> None:
        events = completion.events(request, include_usage)
        super().__init__(events, media_type="text/event-stream", headers={**SSE_HEADERS, **headers})
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A generator that was never started, or is left at a yield, runs no finally of its own in time.
            self._completion.close()


class Completion:
    """One request on its way to the client: its text, what was applied, how long things took."""

    def __init__(
        self, job: Job, model: ServedModel, metrics: Metrics, stops: list[str], requested_sparsity: float | None
    ) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._job, self._model, self._metrics = job, model, metrics
        self._requested = requested_sparsity
        self._text = TextStream(model.tokenizer, job.prompt_ids, stops)
        self._selection: Selection | None = None
        self._count = 0
        self._first_at = self._last_at = 0.0
        self._outcome = "cancelled"
        self._closed = False
        self._sparsity_label = sparsity_label(job.pruning.sparsity)
        self._itl = metrics.inter_token_latency.labels(model.name, self._sparsity_label)
        metrics.accepted.labels(model.name).inc()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """One for each token. Ends without a finish reason when the job was cancelled."""
        try:
            async with aclosing(self._job.tokens()) as tokens:
                async for token, made_at in tokens:
                    self._note(token.selection, made_at)
                    # The token that ends a text is not part of it.
                    text = "" if token.finish_reason == "stop" else self._text.feed(token.id)
                    if self._text.stopped or token.finish_reason:
                        reason = "stop" if self._text.stopped else token.finish_reason
                        self._outcome = reason or "length"
                        yield Piece(text + self._text.flush(), reason)
                        return
                    yield Piece(text, None)
        except ServerDraining:
            raise
        except Exception:
            self._outcome = "failed"
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Give the job up if it still runs, and count the request, once. Called however the request ends."""
        if not self._closed:
            self._closed = True
            self._model.workers.discard(self._job)
            self._observe(self._outcome)

    async def response(self, request: Request) -> CompletionResponse | None:
        """All of it at once; None when the client has gone."""
        texts: list[str] = []
        reason: Literal["stop", "length"] | None = None
        async with _cancelled_when_gone(request, self._job), aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                texts.append(piece.text)
                reason = piece.finish_reason
        if reason is None:
            return None
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self._model.name,
            choices=[Choice(text="".join(texts), finish_reason=reason)],
            usage=self.usage(),
            griffin=self.griffin_report(),
            metrics=self.timing_report(),
        )

    async def events(self, request: Request, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Server-sent events: a chunk for each token, a usage chunk if wanted, ``[DONE]``."""
        frame: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self._model.name,
        }
        usage = {"usage": None} if include_usage else {}
        reason = None
        async with _cancelled_when_gone(request, self._job), aclosing(self.pieces()) as pieces:
            try:
                async for piece in pieces:
                    reason = piece.finish_reason
                    choice = {"index": 0, "text": piece.text, "logprobs": None, "finish_reason": reason}
                    yield _event({**frame, "choices": [choice], **usage})
            except Exception as error:
                # The status line is long gone; the SDK raises this object's message.
                yield _event(as_api_error(error).body())
        if reason and include_usage:
            yield _event(
                {
                    **frame,
                    "choices": [],
                    "usage": self.usage().model_dump(),
                    "griffin": self.griffin_report().model_dump(),
                    "metrics": self.timing_report().model_dump(),
                }
            )
        yield DONE

    def usage(self) -> Usage:
        prompt = len(self._job.prompt_ids)
        return Usage(prompt_tokens=prompt, completion_tokens=self._count, total_tokens=prompt + self._count)

    def griffin_report(self) -> GriffinReport:
        pruning, accounting = self._job.pruning, self._model.workers.engine.accounting
        kept = self._selection.kept_per_layer if self._selection else accounting.width
        return GriffinReport(
            sparsity=pruning.sparsity if self._selection else 0.0,
            requested_sparsity=self._requested,
            reason=self._reason(),
            selection=pruning.selection,
            statistic=pruning.statistic,
            neurons_kept=kept * accounting.layers,
            neurons_total=accounting.neurons,
            active_parameters=accounting.active(kept),
            total_parameters=accounting.total,
            selection_ms=_milliseconds(self._selection.seconds) if self._selection else None,
            expert_set=self._selection.expert_set if self._selection else None,
        )

    def timing_report(self) -> TimingReport:
        started, decode_s = self._job.started, self._last_at - self._first_at
        if started is None or self._count == 0:
            return TimingReport.model_construct(**dict.fromkeys(TimingReport.model_fields))
        later = self._count - 1
        return TimingReport(
            time_to_first_token_ms=_milliseconds(self._first_at - self._job.arrived),
            generation_time_ms=_milliseconds(decode_s),
            queue_time_ms=_milliseconds(started - self._job.arrived),
            prefill_time_ms=_milliseconds(self._first_at - started),
            mean_itl_ms=_milliseconds(decode_s / later) if later else None,
            tokens_per_second=round(later / decode_s, 2) if later and decode_s else None,
        )

    def _reason(self) -> Literal["requested", "server_default", "finished_at_first_token", "rounded_to_dense"]:
        if self._job.pruning.sparsity > 0 and self._selection is None:
            return "finished_at_first_token" if self._count < 2 else "rounded_to_dense"
        return "server_default" if self._requested is None else "requested"

    def _note(self, selection: Selection | None, made_at: float) -> None:
        self._selection = selection or self._selection
        if self._count:
            self._itl.observe(made_at - self._last_at)
        else:
            self._first_at = made_at
        self._count += 1
        self._last_at = made_at

    def _observe(self, outcome: str) -> None:
        """Metrics and the log line, once, however the request ended."""
        metrics, name, labels = self._metrics, self._model.name, (self._model.name, self._sparsity_label)
        report, job = self.griffin_report(), self._job
        if outcome == "cancelled":
            phase = "queue" if job.started is None else "decode" if self._count else "prefill"
            metrics.disconnects.labels(name, phase).inc()
        elif outcome == "failed":
            metrics.failure.labels(name, "internal_error").inc()
        else:
            metrics.success.labels(name, outcome).inc()
            metrics.e2e_latency.labels(*labels).observe(self._last_at - job.arrived)
            metrics.active_parameters.labels(name).set(report.active_parameters)
            metrics.active_ratio.labels(*labels).observe(report.active_parameters / report.total_parameters)
        if job.started is not None:
            metrics.prompt_tokens.labels(name).inc(len(job.prompt_ids))
            metrics.queue_time.labels(*labels).observe(job.started - job.arrived)
        if job.started is not None and self._count:
            metrics.generation_tokens.labels(*labels).inc(self._count)
            metrics.time_to_first_token.labels(*labels).observe(self._first_at - job.arrived)
            metrics.prefill_time.labels(*labels).observe(self._first_at - job.started)
            metrics.decode_time.labels(*labels).observe(self._last_at - self._first_at)
        if self._count > 1:
            later = self._count - 1
            metrics.time_per_output_token.labels(*labels).observe((self._last_at - self._first_at) / later)
            metrics.parameters_read.labels(*labels).inc(later * report.active_parameters)
        if self._selection:
            metrics.selection_time.labels(*labels).observe(self._selection.seconds)
        timing = self.timing_report()
        logger.info(
            "%s %s prompt=%d tokens=%d sparsity=%g ttft_ms=%s itl_ms=%s",
            self.id, outcome, len(job.prompt_ids), self._count, report.sparsity,
            timing.time_to_first_token_ms, timing.mean_itl_ms,
        )  # fmt: skip


@asynccontextmanager
async def _cancelled_when_gone(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancel the job when the client disconnects: the framework does so for streams only, and not in all versions."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
