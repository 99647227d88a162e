"""Target: the server under load, and what it says about itself before the load starts."""

from dataclasses import dataclass
from typing import Any, Literal

import httpx

from loadtest.answer import Answer
from loadtest.errors import LoadTestError

Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
# Seconds to wait for an answer that needs no model.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """
    url: without /v1.
    model: the name to send with each request.
    models: the data of /v1/models; empty if the server has no such list.
    version: the answer of /version; None if there is none.
    """

    url: str
    endpoint: Endpoint
    model: str
    models: tuple[dict[str, Any], ...] = ()
    version: str | None = None

    @property
    def endpoint_url(self) -> str:
        return self.url + PATHS[self.endpoint]


async def find(http: httpx.AsyncClient, url: str, endpoint: Endpoint, model: str | None) -> Target:
    """Ask the server for its models and its version.

    Raises:
        LoadTestError: no server answers, it needs another key, it is not ready, or it names no model.
    """
    try:
        response = await http.get(f"{url}/v1/models", timeout=PATIENCE_S)
    except (httpx.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise LoadTestError(f"no server answers at {url} ({reason}); start it, or name another with --url") from None
    if response.status_code in (401, 403):
        raise LoadTestError(f"{url} wants a key (HTTP {response.status_code}); name its file with --api-key-file")
    if response.status_code == 503:
        answer = Answer()
        answer.refused(503, response.text)
        raise LoadTestError(f"{url} is not ready ({answer.message or answer.error}); try again when it is")
    models = _models(response)
    name = model or next((str(card["id"]) for card in models if "id" in card), None)
    if name is None:
        raise LoadTestError(
            f"{url} lists no models (HTTP {response.status_code} for /v1/models); name one with --model"
        )
    return Target(url, endpoint, name, models, await _version(http, url))


async def count_tokens(http: httpx.AsyncClient, target: Target, prompt: str) -> int | None:
    """The number of tokens of a prompt, with chat template and special tokens. None: the server cannot count them."""
    question: dict[str, Any] = {"model": target.model, "prompt": prompt}
    if target.endpoint == "chat":
        question = {"model": target.model, "messages": [{"role": "user", "content": prompt}]}
    try:
        response = await http.post(f"{target.url}/tokenize", json=question, timeout=PATIENCE_S)
        count = response.json()["count"] if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    # A server with other field names may find no text, and answer 0.
    return count if isinstance(count, int) and count > 0 else None


def _models(response: httpx.Response) -> tuple[dict[str, Any], ...]:
    try:
        data = response.json()["data"] if response.status_code == 200 else ()
        return tuple(card for card in data if isinstance(card, dict))
    except (ValueError, KeyError, TypeError):
        return ()


async def _version(http: httpx.AsyncClient, url: str) -> str | None:
    try:
        response = await http.get(f"{url}/version", timeout=PATIENCE_S)
        return str(response.json()["version"]) if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
