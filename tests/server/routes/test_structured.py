"""Structured output over HTTP: a real engine and tokenizer, with random weights that fit no form by themselves."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.server import tiny_checkpoint
from tests.server.client import metric, post, stream
from tests.server.process import running

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["alpha", "beta"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
ASKED = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 120, "seed": 1}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("structured") / "tiny")
    with running("--model", str(folder), "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        yield server.url


def completed(url: str, **body: Any) -> Any:
    return post(url, **{"max_tokens": 100, "seed": 1, **body}).raise_for_status().json()["choices"]


def refused(url: str, **body: Any) -> tuple[str, str]:
    """The field and the message of a 400."""
    answer = post(url, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize("griffin", [{"draft": "none"}, {}, {"mode": "guarded"}, {"mode": "lossless"}], ids=str)
@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_chat_answers_by_its_schema(url: str, sparsity: float, griffin: dict[str, Any]) -> None:
    """Two answers, greedy and drawn, fit the schema in every mode."""
    for temperature in (0, 1):
        asked = {**ASKED, "response_format": STRICT, "sparsity": sparsity, "griffin": griffin, "n": 2}
        answer = post(url, CHAT, **asked, temperature=temperature).raise_for_status().json()
        for choice in answer["choices"]:
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
            assert choice["finish_reason"] == "stop"
        assert answer["griffin"]["verification"]["forced_tokens"] > 4


def test_newer_apis_answer_by_a_schema(url: str) -> None:
    """Each API has its own field for the schema, and errors name that field."""
    format = {"type": "json_schema", "name": "person", "strict": True, "schema": SCHEMA}
    answer = post(url, "/v1/responses", input="Who?", seed=1, text={"format": format}).raise_for_status().json()
    jsonschema.validate(json.loads(answer["output"][0]["content"][0]["text"]), SCHEMA)
    assert answer["text"]["format"] == format

    asked = {"messages": ASKED["messages"], "max_tokens": 120, "seed": 1}
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = post(url, "/v1/messages", **asked, output_config=config).raise_for_status().json()
    jsonschema.validate(json.loads(message["content"][0]["text"]), SCHEMA)

    wrong = {"type": "json_schema", "name": "x", "schema": {"type": "strange"}}
    error = post(url, "/v1/responses", input="Who?", text={"format": wrong}).json()["error"]
    assert error["param"].startswith("text.format")


def test_a_stream_adds_up_to_the_same(url: str) -> None:
    """The pieces are the whole answer, including the last token of the form."""
    whole = post(url, CHAT, **ASKED, response_format=STRICT).raise_for_status().json()["choices"][0]
    events = stream(url, CHAT, **ASKED, response_format=STRICT)
    pieces = [event["choices"][0] for event in events if event["choices"]]

    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == whole["message"]["content"]
    assert pieces[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"json": SCHEMA}, lambda text: jsonschema.validate(json.loads(text), SCHEMA) is None),
        ({"json": json.dumps(SCHEMA)}, lambda text: jsonschema.validate(json.loads(text), SCHEMA) is None),
        ({"regex": "[a-f]{3}-[0-9]{2,4}"}, re.compile("[a-f]{3}-[0-9]{2,4}").fullmatch),
        ({"choice": ["yes", "no", 'it\'s "so"\n', "ü🙂"]}, ["yes", "no", 'it\'s "so"\n', "ü🙂"].__contains__),
        ({"grammar": 'start: "a" /[0-9]{1,5}/ ("+" /[0-9]/)~0..3'}, re.compile(r"a\d{1,5}(\+\d){0,3}").fullmatch),
        ({"grammar": 'root ::= "SELECT " col " FROM t"\ncol ::= "a" | "b"'}, re.compile("SELECT [ab] FROM t").match),
    ],
    ids=("schema", "schema as text", "regex", "choice", "lark", "gbnf"),
)
def test_every_form_in_completions(url: str, form: dict[str, Any], fits: Any) -> None:
    """Two answers to each of two prompts."""
    for choice in completed(url, prompt=["one", "two"], n=2, structured_outputs=form):
        assert fits(choice["text"]), choice["text"]
        assert choice["finish_reason"] == "stop"


def test_an_object_has_the_properties_that_are_listed(url: str) -> None:
    """pydantic's schemas mean this without saying it. Sparsity does not matter."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for sparsity in (0, 0.5):
        for choice in completed(url, n=3, response_format=form, sparsity=sparsity):
            assert set(json.loads(choice["text"])) == {"a"}


def test_any_object(url: str) -> None:
    """Both spellings give an object; an answer that the limit cuts begins one."""
    for body in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        for choice in completed(url, **body, n=4, max_tokens=60):
            assert choice["text"].startswith("{")
            if choice["finish_reason"] == "stop":
                assert isinstance(json.loads(choice["text"]), dict)


def test_a_limit_cuts_it_off(url: str) -> None:
    """The text so far is there, and the reason is "length"."""
    (choice,) = completed(url, response_format=STRICT, max_tokens=7)

    assert choice["finish_reason"] == "length"
    assert choice["text"].startswith('{"name": "')


def test_log_probabilities_and_echo(url: str) -> None:
    """Each token has the model's own value, forced ones too, so a forced token may be improbable."""
    (choice,) = completed(url, prompt="hello", response_format=STRICT, logprobs=2, echo=True, return_token_ids=True)
    text = choice["text"].removeprefix("hello")

    jsonschema.validate(json.loads(text), SCHEMA)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"]) + len(choice["prompt_token_ids"])
    assert min(value for value in choice["logprobs"]["token_logprobs"] if value is not None) < -5


def test_penalties_and_biases_apply_within_it(url: str) -> None:
    """No bias brings a token that the form forbids; a stop string ends the text in the middle."""
    bias = dict.fromkeys(map(str, range(100, 400)), 100)
    (choice,) = completed(url, response_format=STRICT, logit_bias=bias, presence_penalty=2, repetition_penalty=2)
    jsonschema.validate(json.loads(choice["text"]), SCHEMA)

    (choice,) = completed(url, response_format=STRICT, stop=['"age"'])
    assert choice["text"].startswith('{"name": "')
    assert "age" not in choice["text"]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": {"type": "json"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "structured_outputs.grammar"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format.json_schema.name", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name", "pattern"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {
            "type": "object", "properties": {"b": {"type": "object"}}, "required": ["b"],
            "additionalProperties": False}}}},
         "response_format", r"context=\('properties', 'b'\), 'additionalProperties' is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {
            "type": "object", "properties": {"b": {}}, "additionalProperties": False}}}}, "response_format", "'b'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {
            "properties": {"b": {"items": {"uniqueItems": True}}}}}}},
         "response_format", r"properties\.b\.items.*uniqueItems"),
        ({"structured_outputs": {"json": {"type": "string", "format": "zip"}}}, "structured_outputs.json", "zip"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "a JSON schema"),
        ({"structured_outputs": {"json": {"x-guidance": {}}}}, "structured_outputs.json", "x-guidance"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "look-ahead"),
        ({"structured_outputs": {"regex": "a" * 2**17}}, "structured_outputs.regex", "longer than"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"grammar": "start: other"}}, "structured_outputs.grammar", "other"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex and choice"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
         "structured_outputs.whitespace_pattern", "one line"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
         "structured_outputs", "leave one"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "not with structured_outputs"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "not with response_format"),
        ({"guided_json": {"type": "object"}}, "guided_json", r"structured_outputs\.json"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_forms_that_cannot_be_kept_are_refused_by_name(url: str, body: dict[str, Any], param: str, words: str) -> None:
    """The message says what is wrong or what to send instead."""
    found, message = refused(url, **body)

    assert found == param
    assert re.search(words, message), message


def test_fields_that_ask_for_no_form_change_nothing(url: str) -> None:
    """The text is the same as without these fields."""
    free = completed(url, max_tokens=5)

    for body in ({"response_format": {"type": "text"}}, {"structured_outputs": {}}, {"response_format": None}):
        assert completed(url, **body, max_tokens=5) == free


def test_hurtful_forms_do_not_delay_other_requests(url: str) -> None:
    """Each such form gets a 400 that gives the reason, and other requests are answered meanwhile."""
    completed(url, structured_outputs={"regex": "a"})
    many = {"properties": {f"p{number}": {} for number in range(3000)}}
    with ThreadPoolExecutor(4) as pool:
        hurtful = [
            pool.submit(refused, url, structured_outputs={"json": {**many, "title": str(number)}})
            for number in range(3)
        ]
        began, free = time.monotonic(), 0
        while not all(one.done() for one in hurtful):
            completed(url, max_tokens=2)
            free += 1

    assert {one.result()[0] for one in hurtful} == {"structured_outputs.json"}
    assert all("takes more than 0.5 s of the processor" in one.result()[1] for one in hurtful)
    # At least two answers a second while the forms were refused.
    assert free > 2 * (time.monotonic() - began)


def test_metrics(url: str) -> None:
    """Requests are counted by the kind of form, and forced tokens are counted."""
    names = [("griffin_structured_requests_total", "json_schema"), ("griffin_structured_requests_total", "regex")]
    before = [metric(url, name, kind=kind) for name, kind in names]
    forced = metric(url, "griffin_forced_tokens_total")
    answer = post(url, response_format=STRICT, max_tokens=100, seed=1).raise_for_status().json()

    assert [metric(url, name, kind=kind) for name, kind in names] == [before[0] + 1, before[1]]
    counted = metric(url, "griffin_forced_tokens_total") - forced
    assert counted == answer["griffin"]["verification"]["forced_tokens"] > 0
