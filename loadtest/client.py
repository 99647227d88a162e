"""Client: sends requests, and keeps one sample of each."""

import asyncio
import time
from typing import Any, Protocol

import httpx

from loadtest.answer import Answer
from loadtest.sample import UNFINISHED, Sample
from loadtest.target import Target

TIMEOUT = "timeout"


class Watcher(Protocol):
    """Sees the requests of a run as they happen."""

    def sent(self) -> None: ...
    def pieces(self, count: int) -> None: ...
    def ended(self, sample: Sample, pieces: int) -> None: ...


class Client:
    """Sends requests to one endpoint. Times count from ``began``, a time of the monotonic clock."""

    def __init__(self, http: httpx.AsyncClient, target: Target, timeout_s: float, watcher: Watcher) -> None:
        self._http, self._target, self._timeout_s, self._watcher = http, target, timeout_s, watcher
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    def now(self) -> float:
        return time.monotonic() - self.began

    async def send(self, body: dict[str, Any], sparsity: float | None, due_s: float) -> None:
        """Send one request and receive its answer. It always leaves a sample, even if it is cancelled."""
        answer, sent_s, error = Answer(), self.now(), None
        self._watcher.sent()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(body, answer)
        except TimeoutError:
            error = TIMEOUT
        except httpx.HTTPError as failure:
            error = type(failure).__name__
            answer.message = str(failure)
        except asyncio.CancelledError:
            error = UNFINISHED
            raise
        finally:
            sample = self._sample(answer, sparsity, due_s, sent_s, error or answer.error)
            self.samples.append(sample)
            self._watcher.ended(sample, len(answer.text_s))

    async def _exchange(self, body: dict[str, Any], answer: Answer) -> None:
        async with self._http.stream("POST", self._target.endpoint_url, json=body) as response:
            if response.status_code != 200:
                answer.refused(response.status_code, (await response.aread()).decode(errors="replace"))
            elif not body.get("stream"):
                answer.whole((await response.aread()).decode(errors="replace"))
            else:
                async for data in response.aiter_bytes():
                    self._watcher.pieces(answer.feed(data, self.now()))
                answer.end()

    def _sample(self, answer: Answer, sparsity: float | None, due_s: float, sent_s: float, error: str | None) -> Sample:
        return Sample(
            sparsity=sparsity,
            due_s=due_s,
            sent_s=sent_s,
            end_s=self.now(),
            text_s=tuple(answer.text_s),
            last_s=answer.last_s,
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            finish_reason=answer.finish_reason,
            error=error,
            message=answer.message,
            metrics=answer.block("metrics"),
            griffin=answer.block("griffin"),
        )
