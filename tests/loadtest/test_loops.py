"""Open and closed loops against another server with chosen delays."""

import asyncio
import time

import httpx
import pytest

from loadtest.arguments import Options, parse
from loadtest.client import Client
from loadtest.errors import LoadTestError
from loadtest.jobs import Job, jobs
from loadtest.loops import open_loop
from loadtest.progress import Progress
from loadtest.record import record
from loadtest.run import Run, run
from loadtest.table import lines, printable
from loadtest.target import Target
from tests.loadtest.peer import Peer, served

STALL_S = 1.0


def options(url: str, arguments: str) -> Options:
    return parse(["--url", url, "--no-griffin", "--warmup", "0", *arguments.split()])


def loaded(peer: Peer, arguments: str) -> Run:
    with served(peer) as url:
        return asyncio.run(run(options(url, arguments)))


def slow_ones(found: Run) -> int:
    return sum(sample.e2e_s > STALL_S / 2 for sample in found.samples)


def test_an_open_loop_shows_all_requests_that_a_stall_delays() -> None:
    """Server stalls for 1 s at 30 requests a second: half of the requests due in that time wait over 0.5 s."""
    found = loaded(Peer(stalls={20: STALL_S}), "--rate 30 --requests 80")

    assert len(found.samples) == 80
    assert slow_ones(found) >= 6
    row = record(found, options("http://host", "--rate 30"))["by_sparsity"]["none"]
    assert row["e2e_ms"]["p95"] > STALL_S * 1e3 / 2


def test_a_closed_loop_shows_a_stall_once() -> None:
    """Its only user waits and sends nothing meanwhile, so one request of eighty shows the stall."""
    found = loaded(Peer(stalls={20: STALL_S}), "--concurrency 1 --requests 80")

    # One, or a few more on a busy machine.
    assert 1 <= slow_ones(found) <= 3
    row = record(found, options("http://host", "--concurrency 1"))["by_sparsity"]["none"]
    assert row["e2e_ms"]["p95"] < STALL_S * 1e3 / 2 < row["e2e_ms"]["max"]


def test_latency_includes_a_late_start() -> None:
    """Latency counts from when the request was due, so a late start is included."""

    async def late(url: str) -> Client:
        async with httpx.AsyncClient() as http, Progress("", 1) as progress:
            client = Client(http, Target(url, "completions", "other-model"), 10, progress)
            await client.send({"prompt": "a", "stream": True}, None, due_s=client.now() - 2.0)
            return client

    with served(Peer()) as url:
        (sample,) = asyncio.run(late(url)).samples
    assert sample.ttft_s is not None
    assert sample.e2e_s > sample.ttft_s > sample.sent_s - sample.due_s >= 2.0


def test_users_of_a_closed_loop_ask_one_at_a_time() -> None:
    """At most as many requests run as there are users."""
    found = loaded(Peer(service_s=0.01), "--concurrency 3 --requests 12")
    events = sorted([(s.sent_s, 1) for s in found.samples] + [(s.end_s, -1) for s in found.samples])
    running = [sum(step for _, step in events[: index + 1]) for index in range(len(events))]

    assert len(found.samples) == 12
    assert max(running) == 3


@pytest.mark.parametrize("loop", ["--rate 50", "--concurrency 2"])
def test_a_duration_ends_the_sending(loop: str) -> None:
    """Requests that were sent before are still awaited."""
    found = loaded(Peer(service_s=0.02), f"{loop} --duration 0.5")

    assert found.samples
    assert all(sample.due_s < 0.5 and sample.answered for sample in found.samples)


def test_a_peer_that_says_little() -> None:
    """Without /tokenize, usage and metrics, chunks count as tokens, prompts are estimated, and remarks say so."""
    peer = Peer(pieces=5)
    with served(peer) as url:
        asked = options(url, "--requests 3 --rate 100")
        found = record(asyncio.run(run(asked)), asked)
    row = found["by_sparsity"]["none"]

    assert row["tokens"] == 15
    assert row["tokens_counted"] == "chunks"
    assert (row["griffin"], row["server_reported"], row["prompt_tokens"]) == (None, {}, None)
    assert any("no /tokenize" in remark for remark in found["remarks"])
    assert any("does not say how many tokens" in remark for remark in found["remarks"])
    assert all("sparsity" not in body and "griffin" not in body for body in peer.bodies)
    assert found["server"]["model"] == peer.bodies[0]["model"] == "other-model"


def test_several_tokens_a_chunk() -> None:
    """Usage counts the tokens, and a remark explains why ITL and TPOT differ."""
    asked = options("http://host", "--requests 3 --rate 100")
    found = record(loaded(Peer(pieces=4, tokens=16, usage=True), "--requests 3 --rate 100"), asked)
    row = found["by_sparsity"]["none"]

    assert row["tokens"] == 48
    assert row["tokens_per_chunk"] == 4
    assert any("4.0 tokens on average" in remark for remark in found["remarks"])


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("way", ["stream", "no-stream"])
def test_every_way_to_ask(endpoint: str, way: str) -> None:
    """A whole answer has no times of single pieces."""
    peer = Peer()
    (sample,) = loaded(peer, f"--endpoint {endpoint} --{way} --requests 1 --rate 1").samples

    assert sample.answered
    assert len(sample.text_s) == (4 if way == "stream" else 0)
    assert ("messages" in peer.bodies[0]) == (endpoint == "chat")
    assert ("stream_options" in peer.bodies[0]) == (way == "stream")


def test_errors_by_status() -> None:
    """Errors are counted with OpenAI's code, and the table shows the first message."""
    asked = options("http://host", "--requests 6 --concurrency 1")
    found = record(loaded(Peer(statuses={1: 429, 2: 429, 4: 500}), "--requests 6 --concurrency 1"), asked)
    row = found["by_sparsity"]["none"]

    assert row["errors"] == {"HTTP 429 queue_full": 2, "HTTP 500 queue_full": 1}
    assert row["answered"] == row["e2e_ms"]["count"] == 3
    assert "  none: 2 x HTTP 429 queue_full (<b>too?many?</b>)" in list(map(printable, lines(found)))


def test_other_errors_by_kind() -> None:
    """A stream that breaks off, and an answer that takes too long."""
    (broken,) = loaded(Peer(cut_short=True), "--requests 1 --rate 1").samples
    (slow,) = loaded(Peer(service_s=30), "--requests 1 --rate 1 --timeout 0.2").samples

    assert (broken.error, slow.error) == ("stream ended early", "timeout")


def test_what_stops_a_load_before_it_starts() -> None:
    """One line says what to do."""
    with served(Peer(key="right", models=False)) as url, pytest.raises(LoadTestError, match="--api-key-file"):
        asyncio.run(run(options(url, "")))
    with served(Peer(models=False)) as url, pytest.raises(LoadTestError, match="name one with --model"):
        asyncio.run(run(options(url, "")))
    with served(Peer(statuses={0: 400})) as url, pytest.raises(LoadTestError, match="refuses a request: HTTP 400"):
        asyncio.run(run(options(url, "--warmup 1")))


def test_a_key_opens() -> None:
    """The key is sent with every request."""
    assert loaded(Peer(key="right"), "--api-key right --requests 1 --rate 1").samples[0].answered


def test_no_request_is_sent_early() -> None:
    """Each request starts at its time in the drawn schedule."""
    began = time.monotonic()
    found = loaded(Peer(), "--rate 40 --requests 20 --seed 3")

    assert all(sample.sent_s >= sample.due_s for sample in found.samples)
    assert time.monotonic() - began >= found.samples[-1].due_s
    assert found.samples[-1].due_s > 0


def test_a_late_client_still_stops() -> None:
    """A client that cannot keep up stops when it is told to; few of the overdue requests are still sent."""
    sent = 0

    async def send(job: Job, due_s: float) -> None:
        nonlocal sent
        sent += 1
        if sent == 100:
            stop.set()

    async def overdue() -> None:
        work = jobs({}, {}, ["a"], [None], None, chat=False)
        await open_loop([0.0] * 5_000, work, send, lambda: 1.0, stop)

    stop = asyncio.Event()
    asyncio.run(overdue())

    assert 100 <= sent < 200
