"""What each request passes before its route: the request id, the log, the key, CORS, and the limit on the body."""

import json
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from griffin.errors import LoadError
from server.loader import Loaded
from server.settings import Settings
from tests.server.client import metric, post
from tests.server.scripted import ScriptedEngine, served, wait_until

KEYS = "first-key, second-key, schl\u00fcssel, voil\u00e0"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_opens_the_api(key: str) -> None:
    """Several keys are valid at once, so that keys can be replaced one by one."""
    with served(ScriptedEngine(), api_keys=KEYS) as url:
        assert post(url, headers=bearer(key)).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"authorization": f"bearer  {key}"}).status_code == 200
        for word in ("schl\u00fcssel", "voil\u00e0"):
            header = {"authorization": f"Bearer {word}".encode()}
            assert httpx.get(f"{url}/v1/models", headers=header).status_code == 200


@pytest.mark.parametrize("header", ["X-API-Key", "x-api-key", "api-key", "Api-Key"])
def test_a_key_in_a_header_of_its_own(header: str) -> None:
    """Other services use such headers. A bearer token beside it does not matter, and a wrong key is refused."""
    with served(ScriptedEngine(), api_keys=KEYS) as url:
        for others in ({}, bearer("none"), bearer("second-key")):
            assert post(url, headers={header: "first-key", **others}).status_code == 200
        assert post(url, headers={header: "voil\u00e0".encode()}).status_code == 200  # type: ignore[dict-item]
        for wrong in ("", "first-key2", "Bearer first-key", "first-key, second-key"):
            answer = post(url, headers={header: wrong, **bearer("none")})
            assert answer.status_code == 401
            assert "X-API-Key" in answer.json()["error"]["message"]


@pytest.mark.parametrize("is_open", [True, False])
def test_the_document_says_how_a_key_is_sent(is_open: bool) -> None:
    """It has all three ways and the paths without a key; without keys it has neither."""
    with served(ScriptedEngine(), api_keys=KEYS, open_operations=is_open) as url:
        document = httpx.get(f"{url}/openapi.json", headers=bearer("first-key")).json()
    with served(ScriptedEngine()) as url:
        plain = httpx.get(f"{url}/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    headers = {scheme["name"] for scheme in schemes.values() if scheme["type"] == "apiKey"}

    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert headers == {"x-api-key", "api-key"}
    assert document["security"] == [{name: []} for name in schemes]
    assert document["paths"]["/health"]["get"].get("security") == ([] if is_open else None)
    assert "security" not in document["paths"]["/v1/completions"]["post"]
    assert "security" not in plain
    assert "securitySchemes" not in plain["components"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer"}, bearer("first-key2"), bearer("first-key, second-key"), bearer("fïrst-key"),
     {"Authorization": "first-key"}, {"Authorization": "Basic first-key"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/nowhere"])
def test_without_a_key_the_server_tells_nothing(headers: dict[str, str], path: str) -> None:
    """The answer is a 401 that says how to send a key; it does not even show which routes exist."""
    with served(engine := ScriptedEngine(), api_keys=KEYS) as url:
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = httpx.post(f"{url}{path}", json={"prompt": "hello"}, headers=raw)
        assert metric(url, "griffin_requests_rejected_total", reason="invalid_api_key") == 1

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "first-key" not in answer.text
    assert engine.reads == []


@pytest.mark.parametrize("is_open", [True, False])
def test_operations_are_open_by_a_setting(is_open: bool) -> None:
    """Probes and Prometheus need no key unless the setting demands one."""
    with served(ScriptedEngine(), api_keys=KEYS, open_operations=is_open) as url:
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(f"{url}{path}").status_code == (200 if is_open else 401)
            assert httpx.get(f"{url}{path}", headers=bearer("first-key")).status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401


PREFLIGHT = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}


def test_by_default_no_web_page_may_call() -> None:
    """CORS is off by default."""
    with served(ScriptedEngine()) as url:
        assert "access-control-allow-origin" not in post(url, headers={"Origin": "https://page.example"}).headers
        refused = httpx.options(f"{url}/v1/completions", headers=PREFLIGHT)
    assert refused.status_code == 405
    assert "--cors-origins" in refused.json()["error"]["message"]


def test_named_origins_may_call() -> None:
    """The preflight needs no key, other origins are not allowed, and a page can read errors, too."""
    with served(ScriptedEngine(), cors_origins="https://page.example,https://b.example", api_keys="key") as url:
        preflight = httpx.options(f"{url}/v1/completions", headers=PREFLIGHT)
        other = httpx.options(f"{url}/v1/completions", headers={**PREFLIGHT, "Origin": "https://evil.example"})
        refused = post(url, headers={"Origin": "https://page.example"})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in other.headers
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page.example")


@pytest.mark.parametrize("network", ["Private-Network", "Local-Network"])
@pytest.mark.parametrize("origins", ["https://page.example", "*"])
def test_pages_of_the_open_web_may_call_a_private_network(network: str, origins: str) -> None:
    """An allowed origin gets the permission if the browser asks for it."""
    asked = {**PREFLIGHT, f"Access-Control-Request-{network}": "true"}
    with served(ScriptedEngine(), cors_origins=origins) as url:
        allowed = httpx.options(f"{url}/v1/chat/completions", headers=asked)
        unasked = httpx.options(f"{url}/v1/chat/completions", headers=PREFLIGHT)

    assert allowed.status_code == 200
    assert allowed.headers[f"access-control-allow-{network}"] == "true"
    assert f"access-control-allow-{network}" not in unasked.headers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Origin": "https://evil.example"}, "pages of https://evil.example may not call"),
        ({"Origin": "null"}, "pages of null may not call"),
        ({"Origin": "https://evil.example", "Access-Control-Request-Private-Network": "true"}, "evil.example may not"),
        ({"Access-Control-Request-Method": "DELETE"}, "may not call this server with DELETE; allowed: GET and POST"),
    ],
)
def test_a_refused_preflight_says_what_to_set(changes: dict[str, str], said: str) -> None:
    """The error has OpenAI's form, and a foreign origin gets no permission."""
    with served(ScriptedEngine(), cors_origins="https://page.example") as url:
        answer = httpx.options(f"{url}/v1/completions", headers={**PREFLIGHT, **changes})
    error = answer.json()["error"]

    assert (answer.status_code, error["code"], error["type"]) == (400, "cors_refused", "invalid_request_error")
    assert said in error["message"]
    assert ("--cors-origins" in error["message"]) == ("Origin" in changes)
    if "Origin" in changes:
        assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]
        assert "access-control-allow-private-network" not in answer.headers


def test_a_large_body_is_refused() -> None:
    """The declared length decides, or the bytes that arrive."""

    def endless() -> Any:
        for _ in range(40):
            yield b'"' + b"x" * 999

    with served(engine := ScriptedEngine(), max_body_bytes=10_000) as url:
        declared = post(url, prompt="x" * 20_000)
        chunked = httpx.post(f"{url}/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
        fits = post(url, prompt="x" * 900)
        assert metric(url, "griffin_requests_rejected_total", reason="request_too_large") == 2

    for answer in (declared, chunked):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert "10000 bytes" in answer.json()["error"]["message"]
    assert fits.status_code == 200
    assert len(engine.reads) == 1


def test_a_body_that_never_arrives_is_not_waited_for() -> None:
    """The client gets a 408, so the connection is not held for ever."""
    with served(ScriptedEngine(), body_timeout=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(60)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            answer = ""
            while "body_timeout" not in answer and (part := connection.recv(10_000)):
                answer += part.decode()

        assert answer.startswith("HTTP/1.1 408")
        assert "body_timeout" in answer
        assert post(url).status_code == 200


def test_a_client_that_leaves_while_sending_is_no_error() -> None:
    """Half a body never reaches the engine."""
    with served(engine := ScriptedEngine()) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 500\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        time.sleep(0.1)

        assert post(url).status_code == 200
    assert len(engine.reads) == 1


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("my-request.7", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ('"quote', False),
        ("", False),
    ],
)
def test_request_ids_go_in_and_out(given: str, taken: bool) -> None:
    """A client's id is used unless it could forge a log line; errors and streams have it, too."""
    with served(ScriptedEngine()) as url:
        ids = [
            post(url, headers={"x-request-id": given}, **body).headers["x-request-id"]
            for body in ({}, {"stream": True}, {"sparsity": 7})
        ]
        ids += [httpx.get(f"{url}{path}", headers={"x-request-id": given}).headers["x-request-id"]
                for path in ("/health", "/nowhere")]  # fmt: skip

    if taken:
        assert set(ids) == {given}
    else:
        assert len(set(ids)) == 5
        assert all(len(id) == 32 for id in ids)


def test_one_line_a_request_and_never_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the request's figures, its outcome and times, but never a prompt or an answer."""
    secret = "the prompt is a secret"
    caplog.set_level(logging.DEBUG, "griffin")
    with caplog.at_level(logging.DEBUG), served(ScriptedEngine(text="classified")) as url:
        post(url, prompt=secret, max_tokens=3, sparsity=0.5, headers={"x-request-id": "one"})
        post(url, prompt=secret, max_tokens=3, stream=True, headers={"x-request-id": "two"})
        post(url, prompt=secret, max_tokens=-2, headers={"x-request-id": "three"})
        post(url, prompt=secret, model=secret, headers={"x-request-id": "four"})
        post(url, "/v1/chat/completions", messages=[{"role": "user", "content": secret}], max_tokens=1)
        httpx.get(f"{url}/health")
        # A line is written after the answer is sent, so the client may be faster.
        wait_until(lambda: sum(record.message == "request" for record in caplog.records) == 6)
    lines = {record.__dict__.get("request_id", "-"): record.__dict__ for record in caplog.records}
    logged = [record.__dict__ for record in caplog.records if record.message == "request"]

    assert len(logged) == 6
    one, two, three = logged[:3]
    assert one["path"] == "/v1/completions"
    assert (one["status"], one["outcome"], one["prompt_tokens"], one["tokens"], one["sparsity"]) == (
        200, "length", len(secret), 3, 0.5,
    )  # fmt: skip
    assert all(one[name] >= 0 for name in ("ms", "queue_ms", "ttft_ms", "itl_ms"))
    assert (two["outcome"], two["tokens"]) == ("length", 3)
    assert (three["status"], three["code"], three["param"]) == (400, "invalid_value", "max_tokens")
    assert logged[5]["levelname"] == "DEBUG"
    whole = json.dumps([{key: str(value) for key, value in record.__dict__.items()} for record in caplog.records])
    assert "secret" not in whole
    assert "cla" not in whole.replace("class", "")
    assert lines


def test_unexpected_results_of_probes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A server that loads is expected; a wrong key or a broken engine is not."""
    keyed = {"api_keys": "secret", "open_operations": False}

    asked = threading.Event()

    def slowly(_: Settings) -> Loaded:
        asked.wait(60)
        raise LoadError("after all, no model")

    with caplog.at_level(logging.DEBUG, "griffin"):
        with served(loader=slowly) as url:
            assert httpx.get(f"{url}/ready").status_code == 503
            asked.set()
        with served(ScriptedEngine(), **keyed) as url:
            assert httpx.get(f"{url}/metrics").status_code == 401
            assert httpx.get(f"{url}/version", headers={"x-api-key": "secret"}).status_code == 200
        with served(ScriptedEngine(fail_after=0, rebuild_failures=99)) as url:
            assert post(url).status_code == 500
            wait_until(lambda: httpx.get(f"{url}/ready").json().get("error", {}).get("code") == "engine_failed")
    logged = [record.__dict__ for record in caplog.records if record.message == "request"]

    levels = {(each["path"], each.get("code")): each["levelname"] for each in logged}
    assert levels.pop(("/ready", None), "DEBUG") == "DEBUG"
    assert levels == {
        ("/ready", "model_loading"): "DEBUG", ("/metrics", "invalid_api_key"): "INFO", ("/version", None): "DEBUG",
        ("/v1/completions", "internal_error"): "INFO", ("/ready", "engine_failed"): "INFO",
    }  # fmt: skip


def test_log_lines_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people and JSON for machines have the same fields, for each library's lines."""
    from structlog.contextvars import bound_contextvars

    from server import log

    root = logging.getLogger()
    before = root.handlers[:]
    try:
        for form in ("text", "json"):
            log.configure("info", form)
            with bound_contextvars(request_id="r1"):
                logging.getLogger("griffin").info("request", extra={"path": "/a b\n\x1b\u2028", "tokens": 3})
                logging.getLogger("another.library").warning("odd %s", "thing")
            try:
                raise ValueError("inner")
            except ValueError:
                logging.getLogger("griffin").exception("failed")
    finally:
        root.handlers[:] = before
    text, machine = capsys.readouterr().err.split('{"', 1)
    first, second, third, *traceback = text.splitlines()
    records = [json.loads(line) for line in ('{"' + machine).splitlines()]

    assert first == 'griffin: request request_id=r1 path="/a b\\n\\x1b\\u2028" tokens=3'
    assert second == "griffin: warning: odd thing request_id=r1"
    assert third == "griffin: error: failed"
    assert traceback[-1] == "ValueError: inner"
    assert {**records[0], "timestamp": 0} == {
        "event": "request", "level": "info", "path": "/a b\n\x1b\u2028", "tokens": 3, "request_id": "r1",
        "timestamp": 0,
    }  # fmt: skip
    assert "ValueError: inner" in records[2]["exception"]
