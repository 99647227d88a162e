"""Connections at the level of sockets: half-closed, silent, slow, too many, or of another protocol."""

import asyncio
import json
import logging
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http import listener
from tests.server import tiny_checkpoint
from tests.server.client import metric, post
from tests.server.process import ServerProcess, running
from tests.server.scripted import ScriptedEngine, served, wait_until


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    client = socket.create_connection((host.strip("[]"), int(port)))
    client.settimeout(60)
    return client


def request(path: str = "/v1/completions", version: str = "1.1", *headers: str, **body: Any) -> bytes:
    content = json.dumps({"prompt": "x", "max_tokens": 3, **body}).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json",
             f"Content-Length: {len(content)}", *headers]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + content


def read(client: socket.socket) -> str:
    """Everything until the server closes the connection."""
    answer = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65_536):
            answer += part
    return answer.decode()


def one(client: socket.socket) -> str:
    """One whole answer, by its Content-Length."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65_536)
    return (head + b"\r\n\r\n" + body).decode()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wait_s", [0, 0.5])
def test_a_client_that_closed_its_sending_half_is_answered(streaming: bool, wait_s: float) -> None:
    """It is answered, soon or later; then the server closes, because no request can follow."""
    with served(ScriptedEngine(prefill_s=wait_s, step_s=0.01)) as url, connect(url) as client:
        client.sendall(request(stream=streaming))
        client.shutdown(socket.SHUT_WR)
        answer = read(client)
        assert metric(url, "griffin_client_disconnects_total") == 0

    final = answer.removeprefix("HTTP/1.1 100 Continue\r\n\r\n" * answer.count("100 Continue"))
    assert final.startswith("HTTP/1.1 200")
    assert ("[DONE]" in final) == streaming
    assert final.count('"finish_reason":"length"') == 1
    assert answer.count("100 Continue") <= 5


def test_each_of_two_requests_before_the_half_close_is_answered() -> None:
    """Both have arrived completely."""
    with served(ScriptedEngine(step_s=0.01)) as url, connect(url) as client:
        client.sendall(request() + request())
        client.shutdown(socket.SHUT_WR)
        answer = read(client)

    assert answer.count("HTTP/1.1 200") == 2


@pytest.mark.parametrize("sent", [b"", b"GET /hea", request()[:-5], request()[:40]])
def test_half_a_request_before_the_half_close_is_not_waited_for(sent: bytes) -> None:
    """The rest cannot arrive any more."""
    with served(engine := ScriptedEngine()) as url, connect(url) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert read(client) == ""
    assert engine.reads == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_client_that_is_gone_is_noticed(version: str, streaming: bool, phase: str) -> None:
    """A closed connection first looks like a half-closed one. The server sends something to learn which it is."""
    engine = ScriptedEngine(prefill_s=60 if phase == "prefill" else 0, step_s=0.01, context_length=100_000)
    with served(engine) as url:
        with connect(url) as client:
            client.sendall(request(version=version, stream=streaming, max_tokens=90_000))
            wait_until(lambda: engine.reads if phase == "prefill" else engine.generated > 3)
        wait_until(lambda: metric(url, "griffin_client_disconnects_total", phase=phase) == 1)
        wait_until(lambda: engine.ended)


@pytest.mark.parametrize(
    ("sent", "trickle", "status"),
    [
        (b"", b"", ""),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n", b"A", "408"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\n", b"X: ", "200"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n", "200"),
        (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 999999\r\n\r\n", b"x", "415"),
    ],
)  # fmt: skip
def test_a_slow_or_silent_client_is_not_waited_for(sent: bytes, trickle: bytes, status: str) -> None:
    """Clients send nothing, slow headers, slow headers of a second request, or the slow rest of a refused body."""
    with served(ScriptedEngine(), header_timeout=0.3) as url, connect(url) as client:
        client.sendall(sent)
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                while trickle and not stop.wait(0.05):
                    client.sendall(trickle)

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read(client)
        stop.set()
        thread.join()

    assert answer[9:12] == status
    assert ('"code":"header_timeout"' in answer) == (trickle in (b"A", b"X: "))


def test_a_slow_body_has_its_own_limit() -> None:
    """The time limit for headers holds neither for bodies and answers nor for the pause between requests."""
    with served(ScriptedEngine(step_s=0.1), header_timeout=0.2) as url, connect(url) as client:
        sent = request(max_tokens=5)
        client.sendall(sent[:-10])
        time.sleep(0.5)
        client.sendall(sent[-10:])
        answer = one(client)
        time.sleep(0.5)
        client.sendall(request())
        again = one(client)

    assert answer.startswith("HTTP/1.1 200")
    assert again.startswith("HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 70_000]
)
def test_bytes_that_are_not_http_get_an_error(sent: bytes) -> None:
    """The error has OpenAI's form, and the connection is closed."""
    with served(ScriptedEngine()) as url, connect(url) as client:
        client.sendall(sent)
        head, _, body = read(client).partition("\r\n\r\n")

    assert head.startswith("HTTP/1.1 400 Bad Request")
    assert "Connection: close" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGVzdA==")


@pytest.mark.parametrize(("headers", "status"), [(H2C, "200"), (WEBSOCKET, "400"), (("Upgrade: TLS/1.0",), "200")])
def test_an_upgrade_is_served_or_refused_without_a_warning(
    headers: tuple[str, ...], status: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request for HTTP/2 is served as HTTP/1.1; WebSocket is refused in OpenAI's form."""
    with served(ScriptedEngine()) as url, connect(url) as client:
        client.sendall(request("/v1/completions", "1.1", *headers))
        answer = one(client)
        client.sendall(request())
        again = one(client)

    assert answer[9:12] == status
    assert again.startswith("HTTP/1.1 200")
    if status == "400":
        assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "unsupported_upgrade"
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@contextmanager
def crowd(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Open that many connections with a request whose body never arrives."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(count)]
        for client in clients:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n")
        time.sleep(0.1)
        yield clients


def test_connections_have_a_bound_and_operations_a_reserve() -> None:
    """One too many gets a 503 and is closed; /health and /metrics still answer; later all works again."""
    with served(ScriptedEngine(), max_connections=4, header_timeout=60) as url:
        with crowd(url, 4):
            refused = post(url)
            health, metrics = httpx.get(f"{url}/health"), httpx.get(f"{url}/metrics")
            models = httpx.get(f"{url}/v1/models")
            assert metric(url, "griffin_requests_rejected_total", reason="too_many_connections") == 1
        wait_until(lambda: post(url, max_tokens=1).status_code == 200)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    assert (health.status_code, metrics.status_code, models.status_code) == (200, 200, 503)


def test_beyond_the_reserve_connections_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Further connections wait unaccepted, at no cost, and come in turn; silent ones soon lose the reserve."""
    with served(ScriptedEngine(), max_connections=2, header_timeout=60) as url:
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(url)) for _ in range(2 + listener.RESERVE + 20)]
            waiting = clients[-1]
            waiting.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
        assert post(url, max_tokens=1).status_code == 200
    assert 1 <= len([record for record in caplog.records if "connections are open" in record.message]) < 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("tiny"))


def started(tiny: Path, *arguments: str, files: int | None = None) -> Any:
    return running("--model", str(tiny), "--dtype", "float32", *arguments, files=files, OMP_NUM_THREADS="1")


def flood(server: ServerProcess, count: int) -> ExitStack:
    """Open so many connections that the server has none left; some may fail."""
    stack = ExitStack()
    for _ in range(count):
        client = stack.enter_context(socket.socket())
        client.settimeout(0.2)
        with suppress(OSError):
            client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    return stack


def test_a_small_limit_on_open_files_lowers_the_bound(tiny: Path) -> None:
    """The start says so, a crowd adds little to the log, and the server answers afterwards."""
    with started(tiny, files=64) as server:
        assert server.url
        assert "max_connections is 24 here instead of 512" in server.log
        before = len(server.log)
        with flood(server, 120):
            time.sleep(2)
        wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
        assert post(server.url, max_tokens=2).status_code == 200
        assert len(server.log) - before < 2_000
        assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux changes the limits of another process")
def test_without_free_descriptors_the_server_waits_and_goes_on(tiny: Path) -> None:
    """The server logs a line a second, needs no processor time, and answers when descriptors are free again."""
    import psutil

    with started(tiny) as server:
        process = psutil.Process(server.process.pid)
        assert post(server.url, max_tokens=2).status_code == 200
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 3, hard))
        before, used = len(server.log), process.cpu_times().user
        began = time.monotonic()
        with flood(server, 60):
            wait_until(lambda: "no connection can be accepted" in server.log)
            time.sleep(3)
            said = server.log[before:]
            spent, seconds = process.cpu_times().user - used, time.monotonic() - began
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: httpx.get(f"{server.url}/health", timeout=10).status_code == 200)
        assert post(server.url, max_tokens=2).status_code == 200

    assert 1 <= said.count("no connection can be accepted") <= seconds + 2
    assert "Traceback" not in said
    assert len(said) < 200 * (seconds + 2)
    assert spent < seconds / 3


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("hosts", [["::"], ["[::]"], ["127.0.0.1", "::1"], ["localhost", "127.0.0.1", "::1"]])
def test_both_families_at_one_port(hosts: list[str]) -> None:
    """The system chooses a free port, and no address is bound twice."""
    sockets = listener.bind(hosts, 0)
    with ExitStack() as stack:
        for listening in sockets:
            stack.enter_context(listening)
        [port] = {listening.getsockname()[1] for listening in sockets}
        for host in ("127.0.0.1", "::1"):
            stack.enter_context(socket.create_connection((host, port)))


@pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::"])
def test_the_server_listens_on_both_families(tiny: Path, host: str) -> None:
    """Both use one port, and the address in the log works."""
    with started(tiny, "--host", host) as server:
        port = server.url.rsplit(":", 1)[1]
        urls = (server.url, f"http://127.0.0.1:{port}", f"http://[::1]:{port}")

        assert [httpx.get(f"{url}/health").status_code for url in urls] == [200] * 3


def test_a_token_leaves_at_once() -> None:
    """TCP_NODELAY is set: otherwise a small piece could wait 40 ms for the acknowledgement of the one before."""

    async def nodelay() -> int:
        (listening,) = listener.bind(["127.0.0.1"], 0)
        accepted: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                accepted.put_nowait(transport)

        listening_to = listener.Listener([listening], lambda crowded, lost, reserved: Accepted(), 1)
        try:
            with socket.create_connection(listening.getsockname()):
                transport = await asyncio.wait_for(accepted.get(), 60)
                return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        finally:
            listening_to.close()

    assert asyncio.run(nodelay()) != 0
