"""Extreme values of every field of every endpoint reach a real engine; the server never fails."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, get_args, get_origin

import httpx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies
from pydantic import BaseModel, TypeAdapter, ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

import griffin
from griffin import Engine
from server.app import create_app
from server.http.explain import explain
from server.loader import Loaded
from server.protocol.chat import ChatRequest
from server.protocol.completion import CompletionRequest
from server.protocol.elsewhere import HARMLESS
from server.protocol.options import GriffinOptions
from server.protocol.request import GenerationRequest, StreamOptions
from server.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from server.settings import Settings
from tests.server import tiny_checkpoint
from tests.server.scripted import listening, wait_until

CONTEXT = 64
# As in real models, the embedding has more rows than the tokenizer has tokens.
PADDED = tiny_checkpoint.VOCABULARY + 64
POSTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/completions": (CompletionRequest, {"prompt": "Hi there"}),
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
    "/tokenize": (TokenizeRequest, {"prompt": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}
INTEGERS = [
    -(10**300), -(2**64), -(2**63) - 1, -(2**63), -2, -1, 0, 1, 2, 20, 63, 128, PADDED - 1, PADDED, 2**31 - 1, 2**31,
    2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**300, 10**4000,
]  # fmt: skip
FLOATS = [
    -0.0, 5e-324, 1e-45, 1.2e-38, 9.9e-6, 1e-5, 0.01, 1 - 2**-24, 1 - 2**-53, 1.0, 1 + 2**-52, 2.0, 100.0, 3.5e38,
    1.7976931348623157e308, -1.0, -2.0, -1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = ["", "a", "auto", "\ud800", "\0", "<|endoftext|>", "x" * 600]
PLAIN: list[Any] = [None, True, False, *INTEGERS, *FLOATS, *TEXTS, [], {}]
# Values inside lists and objects, for ids and biases.
INSIDE: list[Any] = [
    *([value] for value in (-(2**63) - 1, -1, 0, PADDED - 1, PADDED, 2**31, 2**63, 10**300)),
    [1, 2.0], [1] * 129, [1] * 200, [[1], [2]], [0.5], [True], ["a", ""], ["a"] * 17,
    *({str(id): 1} for id in (-1, 0, PADDED - 1, PADDED, 2**31, 2**63, 10**20)), {"1": -100, "2": 100}, {"a": 1},
    {"1": 1e308}, {"1": float("nan")}, {"x": ["\ud800"]}, {"x": 10**300}, {"\ud800": 1}, {"enable_thinking": 5e-324},
]  # fmt: skip


def words(annotation: Any) -> list[Any]:
    """All values of the Literals in an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in words(part)]


def forms(request: Any) -> list[type[BaseModel]]:
    """The models of an endpoint's body."""
    if isinstance(request, type):
        return [request]
    return [form for part in get_args(request) for form in forms(part)]


def nested(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Pairs of a field and a value that may be extreme for it. A field that is an object gets one key at a time."""
    objects = {"griffin": GriffinOptions, "stream_options": StreamOptions}
    for name, field in model.model_fields.items():
        if name in HARMLESS:
            continue
        inner = objects.get(name)
        if inner is None:
            yield from ((name, value) for value in [*PLAIN, *INSIDE, *words(field.annotation)])
        else:
            yield from ((name, {key: value}) for key, value in nested(inner))


def refusal(adapter: TypeAdapter[Any], body: dict[str, Any]) -> ValidationError | None:
    try:
        adapter.validate_python(body)
    except ValidationError as error:
        return error
    return None


@cache
def accepted(path: str) -> list[tuple[str, Any]]:
    """Fields with values that validation accepts. It must refuse all others in a short sentence."""
    request, base = POSTS[path]
    adapter, found = TypeAdapter(request), []
    for form in forms(request):
        for name, value in nested(form):
            if name in base and not value:
                continue
            if (refused := refusal(adapter, {**base, name: value})) is None:
                found.append((name, value))
            else:
                error = explain(refused.errors())
                assert len(str(error)) < 1_000
                assert error.param is None or error.param.startswith(name), (name, value, error)
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**tiny_checkpoint.CONFIG.to_dict(), "vocab_size": PADDED}))
    with torch.no_grad():
        # Spread the logits, so that sampling, penalties and comparisons meet large numbers.
        model.lm_head.weight.normal_(std=50)
    return griffin.build_engines(model, 1, context_length=CONTEXT)[0]


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[httpx.Client]:
    loaded = Loaded("tiny", griffin.load().tokenizer, [engine])
    app = create_app(Settings(), loader=lambda _: loaded)
    with listening(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: app.state.service.models.started)
        yield client


@pytest.fixture
def rebuilt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of ``rebuild``, which does nothing here."""
    calls: list[str] = []
    monkeypatch.setattr(engine, "rebuild", lambda: calls.append("rebuilt"))
    return calls


def require_no_fault(client: httpx.Client, path: str, body: dict[str, Any]) -> int:
    """Send a body, require that the server does not fail, not even in a stream, and return the status."""
    if GenerationRequest in forms(POSTS[path][0])[0].__mro__ and not set(body) & set(ChatRequest.limits):
        body = {**body, "max_tokens": 3}
    content = json.dumps(body)
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 404, 504), f"{response.text[:300]} for {content[:300]}"
    assert "internal_error" not in response.text, f"for {content[:300]}"
    return response.status_code


@pytest.mark.parametrize("path", POSTS)
def test_each_value_alone(server: httpx.Client, rebuilt: list[str], path: str) -> None:
    """A valid body is answered or refused, and the engine is not rebuilt."""
    base = POSTS[path][1]
    statuses = [require_no_fault(server, path, {**base, name: value}) for name, value in accepted(path)]

    assert statuses.count(200) > len(statuses) / 3
    assert rebuilt == []
    assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("path", list(POSTS)[:2])
def test_values_together(server: httpx.Client, rebuilt: list[str], path: str) -> None:
    """Several values at once: penalties with biases, filters with temperatures, modes with limits."""
    base, values, statuses = POSTS[path][1], accepted(path), []

    @settings(
        max_examples=60, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategies.lists(strategies.sampled_from(values), min_size=2, max_size=6))
    def run(chosen: list[tuple[str, Any]]) -> None:
        body = {**base, "sparsity": 0.5}
        for name, value in chosen:
            # Two keys of griffin go into one object.
            merged = isinstance(value, dict) and isinstance(body.get(name), dict) and name in ("griffin",)
            body[name] = {**body[name], **value} if merged else value
        statuses.append(require_no_fault(server, path, body))

    run()

    assert statuses.count(200) > 5
    assert rebuilt == []
    assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("id", [0, tiny_checkpoint.VOCABULARY - 1, tiny_checkpoint.VOCABULARY, PADDED - 1])
def test_ids_without_a_token(server: httpx.Client, rebuilt: list[str], id: int) -> None:
    """Such ids are read, decoded and scored like any others."""
    body = {"prompt": [1, id, id], "echo": True, "logprobs": 20, "return_token_ids": True, "logit_bias": {str(id): 100}}

    assert require_no_fault(server, "/v1/completions", body) == 200
    assert require_no_fault(server, "/detokenize", {"tokens": [id, id]}) == 200
    assert rebuilt == []


@pytest.mark.parametrize("written", ["1e-999", "0.5e-320", "9e999", "0." + "0" * 5_000 + "1", "0." + "9" * 5_000, "-0"])
@pytest.mark.parametrize("where", ["header", "model"])
def test_sparsities_that_are_not_json(server: httpx.Client, rebuilt: list[str], where: str, written: str) -> None:
    """The header and the model's name hold numbers that JSON does not parse."""
    headers = {"x-griffin-sparsity": written} if where == "header" else {}
    model = f"tiny@sparsity={written}" if where == "model" else "tiny"
    response = server.post("/v1/completions", json={"prompt": "Hi", "model": model, "max_tokens": 3}, headers=headers)

    assert response.status_code in (200, 400)
    assert rebuilt == []
