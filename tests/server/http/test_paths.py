"""Paths of other servers, and bodies of other endpoints."""

import re

import httpx
import pytest

from server.app import create_app
from server.http.paths import ELSEWHERE
from server.settings import Settings
from tests.server.scripted import ScriptedEngine, served


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/api/generate", "use /v1/completions"),
        ("/api/chat", "use /v1/chat/completions"),
        ("/api/chat/", "use /v1/chat/completions"),
        ("/completion", "use /v1/completions"),
        ("/infill", "use /v1/completions, with suffix"),
        ("/v1/embeddings", "this server makes no embeddings"),
        ("/v1/completions/", "use /v1/completions"),
        ("/chat/completions", "use /v1/chat/completions"),
        ("/v1/v1/chat/completions", "use /v1/chat/completions"),
        ("/v1/chat/completions/chat/completions", None),
        ("/openai/v1/models", "use /v1/models"),
        ("/v1/nothing", None),
    ],
)
def test_unknown_paths(path: str, hint: str | None) -> None:
    """The 404 names the path that the client probably means."""
    with served(ScriptedEngine()) as url:
        answer = httpx.post(f"{url}{path}", json={})

    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == f"Not Found (POST {path})" + (f"; {hint}" if hint else "")


def test_hints_name_existing_paths() -> None:
    """Hints name paths of ours, and no path of another server is ours."""
    app = create_app(Settings())
    named = {path for hint in ELSEWHERE.values() for path in re.findall(r"/[a-z0-9_/]+", hint)}

    assert named <= set(app.state.paths)
    assert not set(ELSEWHERE) & set(app.state.paths)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"messages": []}, "prompt is required; messages belongs to /v1/chat/completions"),
        ("/v1/chat/completions", {"prompt": "a"}, "messages is required; prompt belongs to /v1/completions"),
        ("/v1/chat/completions", {"input": "a"}, "messages is required; input belongs to /v1/responses"),
        ("/v1/responses", {"messages": []}, "input is required; messages belongs to /v1/chat/completions"),
        ("/v1/completions", {"max_tokens": 1}, "prompt is required"),
    ],
)
def test_a_body_of_another_endpoint(path: str, body: dict[str, object], message: str) -> None:
    """The error says what is missing, and which endpoint takes the field that was sent."""
    with served(ScriptedEngine()) as url:
        answer = httpx.post(f"{url}{path}", json=body)

    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
    assert answer.json()["error"]["code"] == "missing_required_parameter"
