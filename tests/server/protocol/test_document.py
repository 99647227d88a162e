"""The OpenAPI document against the server: bodies that it allows are accepted, and streams are as it describes them."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from schemathesis.config import GenerationConfig

from server.app import create_app
from server.settings import Settings
from tests.server.client import events_of, post, stream
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

POSTS = (
    "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens",
)  # fmt: skip
NAMED = {
    "/v1/responses": {"input": "hi", "max_output_tokens": 3},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
}
DRAWN = 80
CONTEXT = 2000
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER = {"role": "tool", "tool_call_id": "1", "content": "42"}
# Rules that no schema can express, with the error's field and words: limits of the model, earlier requests, and
# fields that exclude each other.
RULES: dict[str, tuple[str, str]] = {
    "another model is served": ("model", r"does not exist here"),
    "an id is not in the vocabulary": ("tokens", r"this model has ids"),
    "neurons of no recent answer": (r"griffin\.expert_set", r"not known here"),
    "a prompt longer than the context": ("prompt|messages|input", r"too long|surely more"),
    "the template refuses the conversation": ("messages|input", r"chat template refuses"),
    "more names than a template can need": ("chat_template_kwargs", r"has more than"),
    "more tokens than the context": ("max_tokens|min_tokens|n_predict|.*_tokens", r"too long|do not fit"),
    "fewer tokens than the least": ("min_tokens", r"must not be more than the limit"),
    "a limit under two names": ("n_predict|max_new_tokens|max_completion_tokens", r"differs from"),
    "a penalty under two names": ("repeat_penalty", r"differs from"),
    "a stop string under two names": ("no_stop_trim", r"differs from"),
    "no tokens without echo": (".*max.*_tokens|n_predict", r"unless echo=true"),
    "more answers than are made": ("best_of", r"must be n="),
    "the best of a stream": ("best_of", r"at the end only"),
    "alternatives without log-probabilities": ("top_logprobs", r"only with logprobs=true"),
    "options of no stream": ("stream_options", r"only with stream=true"),
    "calls without answers, answers without calls": (
        r"(messages|input)\[\d+\]\.(tool_\w+|call_id|content\[\d+\]\.\w+)",
        r"answers|the same",
    ),
    "a model that does not think": (
        r"reasoning(\.|_)effort|max_reasoning_tokens|thinking(\.budget_tokens)?",
        r"does not think",
    ),
    "tools of one name": (r"tools\[\d+\]\.(function\.)?name", r"two tools are called"),
    "a choice of no tool": ("tool_choice", r"only with tools|is not one of tools"),
    "an answer begun and not begun": ("continue_final_message", r"cannot be combined with add_generation_prompt"),
    "more scores than an answer holds": ("logprobs", r"ask for less"),
    "a form that no answer can be held to": (
        r"(response_format|structured_outputs|text\.format|output_config\.format)\b.*|tools\[\d+\]\..*",
        r"not with this model",
    ),
    "a schema that strict mode refuses": (r"response_format|text\.format", r"invalid schema"),
    "two forms, or one that is not named": (
        r"response_format\.json_schema|structured_outputs|text\.format\.\w+",
        r"leave .* out|only with|is required",
    ),
    "a form that may end before": (
        "min_tokens|ignore_eos",
        r"not with (response_format|structured_outputs|text|output_config)",
    ),
    "a thought under two names": (r"messages\[\d+\]\.reasoning", r"differs from"),
    "stop strings under two names": ("stop_sequences", r"differs from"),
    "two sparsities, or one for several": ("sparsity", r"auto|draft ngram|expert_set"),
    "choices about neurons": (r"griffin\.\w+", r"only |not with |not for |leave it out"),
    "a mechanism of other servers": (r"mirostat_\w+|xtc_\w+|dry_\w+|dynatemp_\w+|\w+_curve|adaptive_\w+", "turn"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings()).openapi()
    return found


class Characters(CharacterTokenizer):
    """Ids of half a character decode to a replacement, as with real tokenizers."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text = super().decode(ids, skip_special_tokens=skip_special_tokens)
        return text.encode("utf-8", "replace").decode()

    def apply_chat_template(self, conversation: list[dict[str, Any]], *, tokenize: bool, **options: Any) -> str:
        return "".join(message["content"] for message in conversation)


class Thinks(Characters):
    chat_template = "<think></think>"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(ScriptedEngine(context_length=CONTEXT), tokenizer=Characters()) as url:
        yield url


def shorter(body: Any) -> Any:
    """Ask for fewer answers and drop the timeout, so that the run is short."""
    if isinstance(body, dict):
        for name in ("n", "best_of"):
            if type(body.get(name)) in (int, float):
                body[name] = min(body[name], 3)
        body.pop("timeout", None)
    return body


def rule_of(error: dict[str, Any]) -> str | None:
    """The rule that an error is about. Anthropic's errors name the field only in the message."""
    if "param" not in error:
        return next((name for name, (param, words) in RULES.items() if _told(param, words, error["message"])), None)
    return next(
        (
            name
            for name, (param, words) in RULES.items()
            if re.fullmatch(param, error["param"] or "") and re.search(words, error["message"])
        ),
        None,
    )


def _told(param: str, words: str, message: str) -> bool:
    begins = re.match(rf"({param})\b", message) or message.startswith("too long") or "surely more" in message
    return bool(begins and re.search(words, message))


def post_raw(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_allows_is_accepted(document: dict[str, Any], url: str, path: str) -> None:
    """Bodies drawn from the schema are answered, or refused by one of RULES."""
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    valid = schemathesis.GenerationMode.POSITIVE
    # Each field at its bounds, then several fields together.
    bounds = operation.schema.iter_coverage_cases(
        operation, generation_modes=[valid], generation_config=GenerationConfig()
    )
    bodies: list[Any] = [case.body for case in bounds]

    @hypothesis.settings(
        max_examples=DRAWN, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(operation.as_strategy(generation_mode=valid))
    def draw(case: schemathesis.Case) -> None:
        bodies.append(case.body)

    draw()
    unexplained, seen = [], Counter[str]()
    with httpx.Client(base_url=url, timeout=60) as client:
        for body in map(shorter, bodies):
            answer = post_raw(client, path, body)
            rule = "answered" if answer.status_code == 200 else rule_of(answer.json()["error"])
            seen[str(rule)] += 1
            if rule == "no tokens without echo":
                # This rule would hide other faults of most bodies at their bounds.
                answer = post_raw(client, path, {**body, "echo": True})
                rule = "answered" if answer.status_code == 200 else rule_of(answer.json()["error"])
            if rule is None:
                unexplained.append((answer.text[:300], json.dumps(body)[:500]))

    assert not unexplained, unexplained[:5]
    assert seen["answered"] >= 20, seen


def event_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a stream's events, with all components."""
    content = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    return {**content["schema"], "components": document["components"]}


@pytest.mark.parametrize("path", POSTS[:2])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "sparsity": 0.5, "n": 2},
        {"logprobs": 2, "return_token_ids": True, "stream_options": {"include_usage": True}},
        {"logprobs": 2, "echo": True, "return_token_ids": True, "max_tokens": 0},
    ],
)
def test_streams_are_what_the_document_says(
    document: dict[str, Any], url: str, path: str, asked: dict[str, Any]
) -> None:
    """Each event fits the schema, and does not if it is changed."""
    body = {"max_tokens": 3, "prompt": "hi", **asked}
    if path == POSTS[1]:
        body = {**body, "messages": HI, "max_tokens": 3, "prompt": None, "echo": None}
        body |= {"logprobs": True, "top_logprobs": 2} if body.get("logprobs") else {}
    validator = jsonschema_rs.validator_for(event_schema(document, path))

    events = stream(url, path, **body)
    for event in events:
        validator.validate(event)
        for name in ("id", "choices", "object"):
            assert not validator.is_valid({key: value for key, value in event.items() if key != name})
        assert not validator.is_valid({**event, "other": 1})
    assert ("usage" in events[-1]) == ("stream_options" in asked)


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize(
    "text", ["Hm.", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<think>Hm.</think>Yes."]
)
@pytest.mark.parametrize("fails", [False, True])
def test_named_events_are_what_the_document_says(document: dict[str, Any], path: str, text: str, fails: bool) -> None:
    """Each event and each whole answer fits the schema; a changed event does not."""
    tool = {"type": "function", "name": "f"} if path == "/v1/responses" else {"name": "f", "input_schema": {}}
    limit = {name: 100 for name in NAMED[path] if name.startswith("max_")}
    body = {**NAMED[path], **limit, "tools": [tool]}
    validator = jsonschema_rs.validator_for(event_schema(document, path))
    content = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    whole = jsonschema_rs.validator_for({**content, "components": document["components"]})
    engine = ScriptedEngine(text, once=True, fail_after=1 if fails else None)
    with served(engine, tokenizer=Thinks()) as url:
        events = events_of(post(url, path, **body, stream=True))
        answer = post(url, path, **body)

    for name, event in events:
        assert name == event["type"]
        validator.validate(event)
        assert not validator.is_valid({**event, "other": 1}) or name == "error"
        assert not validator.is_valid({**event, "type": "other"})
    assert answer.status_code == (500 if fails else 200)
    if not fails:
        whole.validate(answer.json())


@pytest.mark.parametrize("path", POSTS[:2])
def test_errors_in_streams_are_what_the_document_says(document: dict[str, Any], path: str) -> None:
    """A fault after the first token ends the stream with the error object."""
    with served(ScriptedEngine(fail_after=1), tokenizer=Characters()) as url:
        *_, error = stream(url, path, **({"prompt": "hi"} if path == POSTS[0] else {"messages": HI}))

    assert set(error) == {"error"}
    jsonschema_rs.validator_for(event_schema(document, path)).validate(error)


@pytest.mark.parametrize(
    ("path", "body", "allowed"),
    [
        (POSTS[0], {"prompt": "hi", "truncate_prompt_tokens": 0}, False),
        (POSTS[0], {"prompt": "hi", "truncate_prompt_tokens": -1}, True),
        (POSTS[0], {"prompt": "hi", "max_tokens": -2}, False),
        (POSTS[0], {"prompt": "hi", "max_tokens": 3.0, "n": 2.0, "top_k": 5.0, "seed": 1.0}, True),
        (POSTS[0], {"prompt": "hi", "max_tokens": 3.5}, False),
        (POSTS[0], {"prompt": [104.0, 105], "stop_token_ids": [7.0]}, True),
        (POSTS[0], {"prompt": [104.5]}, False),
        (POSTS[0], {"prompt": "hi", "n": True}, False),
        (POSTS[0], {"prompt": "hi", "logprobs": False}, True),
        (POSTS[0], {"prompt": "hi", "logprobs": True}, False),
        (POSTS[0], {"prompt": "hi", "stop": ["y", "x" * 512]}, True),
        (POSTS[0], {"prompt": "hi", "stop": ["", "x"]}, False),
        (POSTS[0], {"prompt": "hi", "stop": ""}, True),
        (POSTS[0], {"prompt": "hi", "stop": "x" * 513}, False),
        (POSTS[0], {"prompt": "hi", "top_p": 0}, True),
        (POSTS[0], {"prompt": "hi", "sparsity": 1}, False),
        (POSTS[0], {"prompt": "hi", "typical_p": 1}, True),
        (POSTS[0], {"prompt": "hi", "typical_p": 0.5}, False),
        (POSTS[0], {"prompt": "hi", "griffin": {"draft_tokens": 3.0, "mode": "guarded"}}, True),
        (POSTS[0], {"prompt": "hi", **{f"key{n}": 1 for n in range(300)}}, False),
        (POSTS[1], {"messages": HI, "max_tokens": 0}, False),
        (POSTS[1], {"messages": HI, "top_logprobs": 2.0, "logprobs": True}, True),
        (POSTS[1], {"messages": [{"role": "user"}]}, False),
        (POSTS[1], {"messages": [{"role": "user", "content": None}]}, False),
        (POSTS[1], {"messages": [*HI, {"role": "assistant"}, *HI]}, True),
        (POSTS[1], {"messages": [{"role": "user", "content": []}]}, True),
        (POSTS[1], {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, False),
        (POSTS[1], {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]}, False),
        (POSTS[1], {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]}, True),
        (POSTS[1], {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, False),
        (POSTS[1], {"messages": [*HI, {"role": "assistant", "tool_calls": [CALL]}, ANSWER]}, True),
        (POSTS[1], {"messages": [{**HI[0], "tool_calls": [CALL]}]}, False),
        (POSTS[1], {"messages": [{**HI[0], "tool_call_id": "1"}]}, False),
        (POSTS[1], {"messages": HI, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}, True),
        (POSTS[1], {"messages": HI, "tools": [TOOL], "tool_choice": "any"}, False),
        (POSTS[1], {"messages": HI, "tools": [{"type": "custom", "custom": {"name": "f"}}]}, False),
        (POSTS[1], {"messages": HI, "tools": [{"type": "function", "function": {"name": "a b"}}]}, False),
        (POSTS[1], {"messages": HI, "chat_template_kwargs": {"tokenize": True}}, False),
        (POSTS[4], {"input": "hi", "max_output_tokens": 3, "store": False}, True),
        (POSTS[4], {"input": "hi", "store": True}, False),
        (POSTS[4], {"input": []}, False),
        (POSTS[4], {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 3}, True),
        (POSTS[4], {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, False),
        (POSTS[4], {"input": [{"type": "item_reference", "id": "x"}]}, False),
        (POSTS[4], {"input": "hi", "text": {"verbosity": "low"}}, False),
        (POSTS[4], {"input": "hi", "include": ["reasoning.encrypted_content"]}, True),
        (POSTS[4], {"input": "hi", "include": ["file_search_call.results"]}, False),
        (POSTS[4], {"input": "hi", "tools": [{"type": "web_search"}]}, False),
        (POSTS[4], {"input": "hi", "max_tokens": 3}, False),
        (POSTS[5], {"messages": HI, "max_tokens": 3}, True),
        (POSTS[5], {"messages": HI}, False),
        (POSTS[5], {"messages": HI, "max_tokens": 3, "temperature": 1.5}, False),
        (POSTS[5], {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 3}, False),
        (POSTS[5], {"messages": [*HI, {"role": "system", "content": "x"}], "max_tokens": 3}, True),
        (POSTS[5], {"messages": [{"role": "tool", "content": "x"}], "max_tokens": 3}, False),
        (POSTS[5], {"messages": HI, "max_tokens": 3, "tool_choice": {"type": "any"}, "tools": [{"name": "f"}]}, False),
        (POSTS[6], {"messages": HI}, True),
        (POSTS[6], {"messages": HI, "mcp_servers": [{}]}, False),
        ("/tokenize", {"prompt": "hi", "parse_special": False}, False),
        ("/detokenize", {"tokens": [104.0]}, True),
        ("/detokenize", {"tokens": [-1]}, False),
    ],
)
def test_document_and_server_agree(
    document: dict[str, Any], url: str, path: str, body: dict[str, Any], allowed: bool
) -> None:
    """The document and the server accept or refuse the same borderline bodies."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})

    assert validator.is_valid(body) == allowed
    assert (post(url, path, **body).status_code == 200) == allowed
