"""Requests and metrics for tests over HTTP."""

import json
from typing import Any

import httpx

# Long, because a busy machine may start a model or read a prompt meanwhile.
PATIENCE_S = 120


def post(url: str, path: str = "/v1/completions", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """Send a request. /v1/completions gets a prompt if the test names none."""
    if "prompt" not in body and path == "/v1/completions":
        body["prompt"] = "hello"
    return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=PATIENCE_S)


def stream(url: str, path: str = "/v1/completions", **body: Any) -> list[Any]:
    """All events of a stream, decoded. The stream must end with [DONE]."""
    response = post(url, path, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1] if not event.startswith(":")]


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    """The names and data of a stream's events, for APIs that name events."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        if not event.startswith(":"):
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric over all series that have these labels."""
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    mine = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(line.split()[-1]) for line in mine if all(label in line for label in wanted))
