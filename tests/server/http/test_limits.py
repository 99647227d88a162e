"""How many tokens an answer may have, and what happens to a limit that does not fit into the context."""

import itertools
from typing import Any

import pytest

from server.protocol.chat import ChatRequest
from server.protocol.completion import CompletionRequest
from tests.server.client import post, stream
from tests.server.scripted import ScriptedEngine, served

CONTEXT = 100
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
# The tokens of "user:hello;assistant:".
CHAT_TOKENS = 21


def engine() -> ScriptedEngine:
    return ScriptedEngine(context_length=CONTEXT)


@pytest.mark.parametrize("asked", [CONTEXT - 5 + 1, CONTEXT, 32_000, 10**30])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_overlong_limit_becomes_the_rest_of_the_context(asked: int, streaming: bool) -> None:
    """Agents send 32,000 to every model. The answer says which limit was used."""
    with served(engine()) as url:
        if streaming:
            events = stream(url, max_tokens=asked, stream_options={"include_usage": True})
            answer, reason = events[-1], events[-2]["choices"][0]["finish_reason"]
        else:
            answer = post(url, max_tokens=asked).json()
            reason = answer["choices"][0]["finish_reason"]

    assert (answer["usage"]["completion_tokens"], answer["griffin"]["max_tokens"]) == (95, 95)
    assert (reason, answer["griffin"]["max_tokens_each"]) == ("length", None)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_overlong_limits_of_conversations(field: str) -> None:
    """Both names of the limit work."""
    with served(engine()) as url:
        answer = post(url, CHAT, messages=MESSAGES, **{field: 32_000}).json()

    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["griffin"]["max_tokens"] == CONTEXT - CHAT_TOKENS


def test_each_prompt_has_its_own_limit() -> None:
    """The rest of the context differs between prompts."""
    with served(engine()) as url:
        report = post(url, prompt=["x" * 10, "x" * 97, [120] * 40], max_tokens=80).json()["griffin"]

    assert (report["max_tokens"], report["max_tokens_each"]) == (80, [80, 3, 60])


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/v1/completions", {}, 16),
        ("/v1/completions", {"prompt": "x" * 90}, 10),
        ("/v1/completions", {"min_tokens": 20}, 20),
        ("/v1/completions", {"max_tokens": 7}, 7),
        ("/v1/completions", {"max_tokens": 0, "echo": True}, 0),
        ("/v1/completions", {"max_tokens": 0, "echo": True, "logprobs": 1, "prompt": "x" * 100}, 0),
        (CHAT, {"messages": MESSAGES}, CONTEXT - CHAT_TOKENS),
    ],
)
def test_limits_that_fit_stay(path: str, body: dict[str, Any], limit: int) -> None:
    """They do not change, and neither do the defaults."""
    with served(engine()) as url:
        report = post(url, path, **body).json()["griffin"]

    assert report["max_tokens"] == limit


@pytest.mark.parametrize("refuse", [False, True])
@pytest.mark.parametrize("size", [CONTEXT, CONTEXT + 1, 10 * CONTEXT])
def test_a_prompt_that_leaves_no_room_is_refused(size: int, refuse: bool) -> None:
    """Both settings refuse it, as no limit would make it fit."""
    with served(engine(), overlong_max_tokens="refuse" if refuse else "clamp") as url:
        for body in ({"max_tokens": 32_000}, {"max_tokens": 1}, {}, {"min_tokens": 16}):
            answer = post(url, prompt="x" * size, **body)
            error = answer.json()["error"]

            assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
            assert error["param"] == "prompt"


def test_overlong_limits_are_refused_where_the_operator_wants_it() -> None:
    """The setting is ``--overlong-max-tokens refuse``."""
    with served(engine(), overlong_max_tokens="refuse") as url:
        answer, fits = post(url, max_tokens=96), post(url, max_tokens=95)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert fits.json()["griffin"]["max_tokens"] == 95


@pytest.mark.parametrize("body", [{}, {"max_tokens": 32_000}, {"max_tokens": 10**30, "min_tokens": 10**25}])
def test_min_tokens_that_do_not_fit_are_refused(body: dict[str, Any]) -> None:
    """The server could not keep the promise; the error says what fits."""
    with served(engine()) as url:
        answer = post(url, **{"min_tokens": 96} | body)
        fits = post(url, **body | {"min_tokens": 95})
        error = answer.json()["error"]

    assert (answer.status_code, error["param"], error["code"]) == (400, "min_tokens", "context_length_exceeded")
    assert "at most 95" in error["message"]
    assert fits.json()["usage"]["completion_tokens"] == 95


@pytest.mark.parametrize(
    ("body", "prompt", "limit"),
    [
        # The prompt gets what the limit leaves.
        ({"max_tokens": 10}, 90, 10),
        ({"max_tokens": 60}, 40, 60),
        ({}, 84, 16),
        ({"min_tokens": 30}, 70, 30),
        # The prompt gets at least a quarter unless min_tokens needs it; an answer without limit gets one, too.
        ({"max_tokens": 99}, 25, 75),
        ({"max_tokens": 100}, 75, 25),
        ({"max_tokens": 32_000}, 75, 25),
        ({"max_tokens": 32_000, "min_tokens": 50}, 50, 50),
        ({"max_tokens": 99, "min_tokens": 90}, 10, 90),
        # An answer of no tokens needs no room.
        ({"max_tokens": 0, "echo": True}, 100, 0),
    ],
)
def test_truncation_beside_a_limit(body: dict[str, Any], prompt: int, limit: int) -> None:
    """With truncate_prompt_tokens -1 neither the prompt nor the answer becomes empty."""
    with served(engine()) as url:
        answer = post(url, prompt="x" * 500, truncate_prompt_tokens=-1, **body).json()

    assert (answer["usage"]["prompt_tokens"], answer["griffin"]["max_tokens"]) == (prompt, limit)


def test_truncation_of_conversations() -> None:
    """By default an answer may fill the context, so the prompt is cut to three quarters."""
    with served(engine()) as url:
        messages = [{"role": "user", "content": "x" * 500}]
        answer = post(url, CHAT, messages=messages, truncate_prompt_tokens=-1).json()

    assert (answer["usage"]["prompt_tokens"], answer["griffin"]["max_tokens"]) == (75, 25)


def test_truncation_where_overlong_limits_are_refused() -> None:
    """The prompt is cut for the whole limit; a limit that leaves no prompt is refused."""
    with served(engine(), overlong_max_tokens="refuse") as url:
        fits = post(url, prompt="x" * 500, truncate_prompt_tokens=-1, max_tokens=99)
        refused = post(url, prompt="x" * 500, truncate_prompt_tokens=-1, max_tokens=100)

    assert (fits.json()["usage"]["prompt_tokens"], fits.json()["griffin"]["max_tokens"]) == (1, 99)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize(
    ("chat", "name"),
    [*itertools.product([False, True], ["max_tokens", "n_predict", "max_new_tokens"]), (True, "max_completion_tokens")],
)
def test_minus_one_is_the_rest_of_the_context(chat: bool, name: str) -> None:
    """Both endpoints and both settings read -1 so. A truncated prompt leaves a quarter for the answer."""
    request_type: type[ChatRequest] | type[CompletionRequest] = ChatRequest if chat else CompletionRequest
    asked = {"messages": MESSAGES} if chat else {"prompt": "hello"}
    body = request_type.model_validate({**asked, name: -1})

    for clamp in (True, False):
        assert body.limit_within(95, {}, clamp=clamp) == 95
        assert body.longest_prompt(CONTEXT, {}, clamp=clamp) == 75
