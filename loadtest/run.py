"""Run: the load test itself, from options to samples."""

import asyncio
import math
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, takewhile
from typing import Any

import httpx

from loadtest.arguments import Options
from loadtest.arrivals import poisson
from loadtest.client import Client
from loadtest.errors import LoadTestError
from loadtest.jobs import Job, jobs
from loadtest.loops import closed_loop, open_loop
from loadtest.progress import Progress
from loadtest.prompts import Prompt, Tags, sized
from loadtest.sample import Sample, label
from loadtest.target import Target, count_tokens, find

# Shorter than servers keep idle connections, so that no request meets one that is just being closed.
KEEP_ALIVE_S = 2.0
NO_REFUSAL = ("HTTP 408", "HTTP 429")


@dataclass(frozen=True, slots=True)
class Run:
    """What happened in a run.

    wall_s: from the time when the first request was due to the end of the last answer.
    cpu_s: CPU time of this process, meanwhile.
    stopped_by: the signal that ended the run early, or None.
    nonce: the seed of the numbers that begin prompts; None: prompts begin with no number.
    prompts_approximate: whether the length of built-in prompts is an estimate.
    """

    target: Target
    samples: list[Sample]
    started_at: datetime
    wall_s: float
    cpu_s: float
    stopped_by: signal.Signals | None
    nonce: int | None
    prompts_approximate: bool


async def run(options: Options) -> Run:
    """Warm the server up, make the load, and collect the samples.

    Raises:
        LoadTestError: the server does not answer, is not ready, or refuses the requests.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S)
    # A proxy or server that compresses may hold text back.
    headers = {"Accept-Encoding": "identity"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    # Ignore proxies of the environment: they would be measured too.
    async with httpx.AsyncClient(timeout=None, limits=limits, headers=headers, trust_env=False) as http:
        target = await find(http, options.url, options.endpoint, options.model)
        nonce = None if options.shared_prefix else secrets.randbits(64)
        tags = None if nonce is None else Tags(nonce)
        prompts, approximate = await _prompts(http, target, options, tags)
        endless = jobs(_template(options, target), options.overrides, prompts, options.sparsities, tags,
                       chat=options.endpoint == "chat")  # fmt: skip
        await _warm_up(http, target, options, endless)
        started_at, cpu = datetime.now(UTC), time.process_time()
        total = options.requests and options.requests * len(options.sparsities)
        async with Progress("load", total) as progress:
            client = Client(http, target, options.timeout_s, progress)
            with _stopped_by_signal() as (stop, signals):
                await _load(client, options, islice(endless, total) if total else endless, stop)
        # In the order in which they were due.
        samples = sorted(client.samples, key=lambda sample: sample.due_s)
        wall_s = max((sample.end_s for sample in samples), default=0.0)
        used = time.process_time() - cpu
        return Run(target, samples, started_at, wall_s, used, signals[0] if signals else None, nonce, approximate)


async def _load(client: Client, options: Options, work: Iterator[Job], stop: asyncio.Event) -> None:
    async def send(job: Job, due_s: float) -> None:
        await client.send(job.body, job.sparsity, due_s)

    if options.rate is None:
        await closed_loop(options.concurrency or 1, work, send, client.now, options.duration_s or math.inf, stop)
        return
    due_s: Iterator[float] = poisson(options.rate, options.seed)
    if options.requests:
        due_s = islice(due_s, options.requests * len(options.sparsities))
    if options.duration_s:
        limit = options.duration_s
        due_s = takewhile(lambda due: due < limit, due_s)
    await open_loop(due_s, work, send, client.now, stop)


async def _prompts(
    http: httpx.AsyncClient, target: Target, options: Options, tags: Tags | None
) -> tuple[tuple[Prompt, ...], bool]:
    """The prompts, and whether their length is an estimate."""
    if options.prompts:
        return options.prompts, False

    async def count(text: str) -> int | None:
        return await count_tokens(http, target, text)

    found = await sized(options.prompt_tokens, tags.next() if tags else "", count)
    return (found.text,), found.tokens is None


def _template(options: Options, target: Target) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "stream": options.stream,
    }
    if options.stream:
        body["stream_options"] = {"include_usage": True}
    if options.ignore_eos:
        body["ignore_eos"] = True
    return body


async def _warm_up(http: httpx.AsyncClient, target: Target, options: Options, endless: Iterator[Job]) -> None:
    """Send requests one after the other, in whole rounds of sparsities.

    Raises:
        LoadTestError: the server refuses one. It would refuse all others too.
    """
    total = options.warmup * len(options.sparsities)
    async with Progress("warm-up", total) as progress:
        client = Client(http, target, options.timeout_s, progress)
        for job in islice(endless, total):
            await client.send(job.body, job.sparsity, client.now())
            error = client.samples[-1].error or ""
            if error.startswith("HTTP 4") and not error.startswith(NO_REFUSAL):
                asked = "" if job.sparsity is None else f" with sparsity {label(job.sparsity)}"
                message = client.samples[-1].message
                raise LoadTestError(f"{target.endpoint_url} refuses a request{asked}: {error}: {message}")


@contextmanager
def _stopped_by_signal() -> Iterator[tuple[asyncio.Event, list[signal.Signals]]]:
    """An event that Ctrl-C or SIGTERM sets, and a list that names the signal. A second Ctrl-C ends the process."""
    loop, stop, received = asyncio.get_running_loop(), asyncio.Event(), list[signal.Signals]()

    def first(number: signal.Signals) -> None:
        received.append(number)
        stop.set()
        forget()

    def forget() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first, number)
    try:
        yield stop, received
    finally:
        forget()
