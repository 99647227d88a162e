"""schemathesis holds a real server to its OpenAPI document, which describes all that the server can do."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import strategies
from schemathesis.config import (
    AnalysisConfig,
    ConstantsConfig,
    GenerationConfig,
    OutputConfig,
    ProjectConfig,
    ProjectsConfig,
    SanitizationConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import negative_data_rejection, response_schema_conformance

from tests.server import tiny_checkpoint
from tests.server.process import ServerProcess, running

MODEL = "tiny"
REQUEST_TIMEOUT_S = 20
LEAST_CASES, LEAST_ANSWERED = 2_000, 600
# Drawn requests for each operation, beside the boundary cases that follow from its schema.
DRAWN, DRAWN_WITHOUT_BODY = 100, 10
# Fields left out of chats: tools need more context, the model does not think, and stop_sequences also means stop.
LEFT_OUT = ("tools", "tool_choice", "instructions", "system", "reasoning", "thinking", "stop_sequences")
MODES = list(schemathesis.GenerationMode)
VALID = schemathesis.GenerationMode.POSITIVE
CHOICES = ("/v1/completions", "/v1/chat/completions")
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")
GENERATION = (*CHOICES, "/v1/responses", "/v1/messages")
ERRORS = {"400", "401", "404", "408", "413", "415", "429", "500", "503", "504"}
# An error must not show the paths of the server's source and files.
INTERNALS = re.compile(r'Traceback|File "|\.py\b|-packages|/(home|root|usr|opt|var|tmp)/')
# Fields that decide how much is generated, with the highest value here and in the document.
SMALL = {
    "n": (3, 128), "best_of": (3, 128), "max_tokens": (8, None), "max_completion_tokens": (8, None),
    "max_output_tokens": (8, None),
    "min_tokens": (8, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("checkpoint") / MODEL)
    limits = ("--max-model-len", "64", "--request-timeout", str(REQUEST_TIMEOUT_S))
    # Several threads only slow a model of this size.
    with running("--model", str(folder), "--dtype", "float32", *limits, OMP_NUM_THREADS="1") as process:
        yield process


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> schemathesis.BaseSchema:
    """The document as schemathesis reads it, with all of its checks except one."""
    # Do not take constants from source files.
    project = ProjectConfig(analysis=AnalysisConfig(constants=ConstantsConfig(enabled=False)), max_stream_events=1_000)
    # A body that fits the schema may break other rules: fields that exclude each other, the context, the model's name.
    # test_document.py lists these rules.
    project.checks.update(excluded_check_names=["positive_data_acceptance"])
    # Fields with "token" in their names are no secrets here, and a failure must show its request.
    output = OutputConfig(sanitization=SanitizationConfig(enabled=False))
    config = SchemathesisConfig(projects=ProjectsConfig(default=project), output=output)
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or the one that it refers to."""
    reference = schema.get("$ref")
    found: dict[str, Any] = document["components"]["schemas"][reference.split("/")[-1]] if reference else schema
    return found


def fields(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields of a POST's body, in any of its forms."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = resolved(document, schema)
    forms = [resolved(document, form) for form in schema.get("oneOf") or schema.get("anyOf") or [schema]]
    return {name: field for form in forms for name, field in form["properties"].items()}


def shorten(body: object) -> None:
    """Change a body so that less is generated. Valid values stay valid and in the same order; invalid ones stay as
    they are.

    A client's own timeout is raised to the server's: a very short one would get the 504 that it asks for.
    """
    if not isinstance(body, dict):
        return
    for name, (most, highest) in SMALL.items():
        value = body.get(name)
        if type(value) is int and most < value and (highest is None or value <= highest):
            body[name] = most
    timeout = body.get("timeout")
    if type(timeout) in (int, float) and 0 < timeout < REQUEST_TIMEOUT_S:
        body["timeout"] = REQUEST_TIMEOUT_S


def settled(case: schemathesis.Case, document: dict[str, Any]) -> schemathesis.Case | None:
    """A copy of a valid case that also keeps the rules beyond the schema, so that it is answered."""
    if case.meta is None or case.meta.generation.mode is not VALID:
        return None
    if "name" in case.path_parameters:
        return case.operation.Case(path_parameters={"name": f"{MODEL}@sparsity=0.5"})
    if not isinstance(case.body, dict):
        return None
    known = fields(document, case.operation.path)
    body = {name: value for name, value in case.body.items() if name in known} | {"model": MODEL}
    if "messages" in body:
        # A tool's message would need a call, and tools need more context.
        said = [(message["role"], message.get("content") or "Hi") for message in body["messages"][:2]]
        said = [("user" if role == "tool" else role, content) for role, content in said]
        body["messages"] = [{"role": role, "content": _plain(content)} for role, content in said]
    if "input" in body:
        body["input"] = _plain(body["input"])
    if "prompt" not in body:
        body = {name: value for name, value in body.items() if name not in LEFT_OUT}
    for name in {"prompt", "tokens", "stop_token_ids"} & set(body):
        body[name] = _small(body[name])
    if body.get("logit_bias"):
        body["logit_bias"] = {str(_small(int(id))): bias for id, bias in body["logit_bias"].items()}
    if "truncate_prompt_tokens" in known:
        body["truncate_prompt_tokens"] = 16
    if body.get("stream_options") is not None:
        body["stream"] = True
    if body.get("stream"):
        body.pop("best_of", None)
    if body.get("best_of"):
        body["best_of"] = max(body["best_of"], body.get("n") or 1)
    if "max_completion_tokens" in known and not body.get("max_tokens"):
        # Without a limit the answer would fill the context.
        body["max_completion_tokens"] = body.get("max_completion_tokens") or 4
    if "max_output_tokens" in known:
        body["max_output_tokens"] = body.get("max_output_tokens") or 4
    if (body.get("griffin") or {}).get("prompt_tokens"):
        body["griffin"] = {**body["griffin"], "prompt_tokens": 1 if "echo" in known else None}
        body |= {"echo": True, "logprobs": 1} if "echo" in known else {}
    if "echo" in known and body.get("max_tokens") == 0:
        body |= {"echo": True, "min_tokens": 0}
    if body.get("sparsity") == "auto":
        # The model was not measured.
        body["sparsity"] = 0.5
    if body.get("griffin"):
        body["griffin"] = _agreed(body)
    griffin = body.get("griffin") or {}
    if griffin.get("draft") == "ngram" and griffin.get("mode") in ("guarded", "lossless"):
        body["sparsity"] = 0
    if body.get("top_logprobs") and "logprobs" in known:
        body["logprobs"] = True
    if body.get("continue_final_message"):
        body["add_generation_prompt"] = False
    return case.operation.Case(body=body, media_type="application/json")


def _plain(content: Any) -> Any:
    """Keep a text; replace a list of blocks or items, which has rules of its own, by a text."""
    return content if isinstance(content, str) and content else "Hi"


def _agreed(body: dict[str, Any]) -> dict[str, Any]:
    """A griffin object whose fields go together on a server without earlier answers."""
    scored = body.get("echo") and body.get("logprobs") is not None
    griffin = {name: value for name, value in body["griffin"].items() if name != "expert_set"}
    if scored:
        griffin |= {"mode": "fast", "compare": False}
    without, fast = {"method"}, griffin.get("mode") not in ("guarded", "lossless")
    if fast:
        without |= {"acceptance", "refresh"}
    if (griffin.get("draft") in ("pruned", "both")) if fast else griffin.get("draft") == "none":
        without |= {"draft"}
    if fast and griffin.get("draft") == "none":
        without |= {"draft_tokens"}
    if griffin.get("mode") != "guarded" or griffin.get("draft") == "ngram":
        without.add("acceptance")
    if griffin.get("draft") == "ngram" and not fast:
        without |= {"selection", "statistic", "refresh"}
    if griffin.get("selection") or griffin.get("statistic"):
        without.add("refresh")
    return {name: value for name, value in griffin.items() if name not in without}


def _small(value: Any) -> Any:
    """Cut texts and lists to a few items, and bring ids into the vocabulary."""
    if isinstance(value, list):
        return [_small(item) for item in value[:3]]
    return int(value) % tiny_checkpoint.VOCABULARY if isinstance(value, int | float) else value and value[:8]


def require_envelope(response: schemathesis.Response, path: str) -> None:
    """Require a short error object of this API without internal details."""
    assert response.headers["content-type"] == ["application/json"]
    assert len(response.content) < 2_000
    assert not INTERNALS.search(response.text)
    body = response.json()
    if path in ANTHROPIC:
        assert (set(body), body["type"], set(body["error"])) == ({"type", "error"}, "error", {"type", "message"})
        assert body["error"]["message"]
        return
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)


def require_whole_stream(response: schemathesis.Response, path: str, document: dict[str, Any]) -> None:
    """Require a complete stream of events that fit the document, without an error event."""
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    if path in CHOICES:
        assert events.pop() == "data: [DONE]"
    content = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    validator = jsonschema_rs.validator_for({**content["schema"], "components": document["components"]})
    for event in events:
        chunk = json.loads(event[event.index("data: ") :].removeprefix("data: "))
        assert "error" not in (*chunk, chunk.get("type")), event
        validator.validate(chunk)


def require_conformance(case: schemathesis.Case, session: requests.Session, document: dict[str, Any]) -> int:
    """Send a case, require an answer that fits the document and is no fault, and return its status."""
    shorten(case.body)
    response = case.call(session=session, timeout=3 * REQUEST_TIMEOUT_S)
    streamed = response.headers.get("content-type", [""])[0].startswith("text/event-stream")
    # schemathesis would check {"data": text}; the schema describes the JSON in the text, as in OpenAI's document.
    # It also does not know that a body that is too large is refused unread.
    excluded = [response_schema_conformance] if streamed else [negative_data_rejection] * (response.status_code == 413)
    case.validate_response(response, excluded_checks=excluded or None)
    assert response.status_code < 500
    if response.status_code >= 400:
        require_envelope(response, case.operation.path)
    elif streamed:
        require_whole_stream(response, case.operation.path, document)
    return response.status_code


def cases_of(operation: schemathesis.APIOperation) -> Iterator[schemathesis.Case]:
    """Boundary values, missing fields, wrong types, media types and methods; then drawn cases, the same in each run."""
    yield from operation.schema.iter_coverage_cases(
        operation, generation_modes=MODES, generation_config=GenerationConfig()
    )
    drawn: list[schemathesis.Case] = []

    # Cases are only collected here, so there is nothing to shrink and no deadline.
    @hypothesis.settings(
        max_examples=DRAWN if operation.body else DRAWN_WITHOUT_BODY, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(strategies.one_of([operation.as_strategy(generation_mode=mode) for mode in MODES]))
    def draw(case: schemathesis.Case) -> None:
        drawn.append(case)

    draw()
    yield from drawn


def test_every_answer_is_one_that_the_document_describes(
    server: ServerProcess, api: schemathesis.BaseSchema, document: dict[str, Any], subtests: pytest.Subtests
) -> None:
    """Thousands of valid and invalid requests cause no server error and no undocumented answer."""
    cases, statuses = 0, Counter[int]()
    with requests.Session() as session:
        # It would look for a proxy in the environment at each request.
        session.trust_env = False
        for result in api.get_all_operations():
            operation = result.ok()
            # Keep one failure of each kind: a hundred requests often have the same fault.
            failures: dict[str, BaseException] = {}
            for drawn in cases_of(operation):
                for case in filter(None, (settled(drawn, document), drawn)):
                    cases += 1
                    try:
                        statuses[require_conformance(case, session, document)] += 1
                    except (Exception, BaseExceptionGroup) as failure:
                        failures.setdefault(_kind(failure), failure)
            with subtests.test(operation.label):
                if failures:
                    raise BaseExceptionGroup(f"{len(failures)} kinds of failures", list(failures.values()))

    assert cases >= LEAST_CASES
    assert statuses[200] >= LEAST_ANSWERED
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert "Traceback" not in server.log
    assert "rebuilt" not in server.log


def _kind(failure: BaseException) -> str:
    if isinstance(failure, BaseExceptionGroup):
        return " ".join(type(part).__name__ for part in failure.exceptions)
    return type(failure).__name__


@pytest.mark.parametrize("path", GENERATION)
def test_the_extension_is_described_field_by_field(document: dict[str, Any], path: str) -> None:
    """Each field that OpenAI's API lacks is in the document with a description."""
    known = fields(document, path)
    [griffin, *_] = [resolved(document, form) for form in known["griffin"]["anyOf"]]

    assert {"sparsity", "timeout", "griffin"} <= set(known)
    assert set(griffin["properties"]) == {
        "method", "selection", "statistic", "expert_set", "mode", "draft", "draft_tokens", "acceptance", "refresh",
        "compare", "prompt_tokens",
    }  # fmt: skip
    for field in (known["sparsity"], known["timeout"], griffin, *griffin["properties"].values()):
        assert len(field["description"]) > 10


@pytest.mark.parametrize("path", GENERATION)
def test_every_status_of_an_error_is_documented_with_its_body(document: dict[str, Any], path: str) -> None:
    """The document has every status with the API's error object."""
    answers = document["paths"][path]["post"]["responses"]

    assert set(answers) == ERRORS | {"200"}
    for status in ERRORS:
        assert answers[status]["description"]
        assert set(answers[status]["content"]) == {"application/json"}
        schema = answers[status]["content"]["application/json"]["schema"]
        name = "AnthropicError" if path in ANTHROPIC else "ErrorResponse"
        assert schema == {"$ref": f"#/components/schemas/{name}"}


@pytest.mark.parametrize("path", GENERATION)
def test_an_answer_is_an_object_or_a_stream(document: dict[str, Any], path: str) -> None:
    """The document has both forms of a 200."""
    content = document["paths"][path]["post"]["responses"]["200"]["content"]

    assert set(content) == {"application/json", "text/event-stream"}
    answer = resolved(document, content["application/json"]["schema"])["properties"]
    assert {"choices", "output", "content"} & set(answer)
    assert {"usage", "griffin", "metrics"} <= set(answer)


def test_no_answer_has_status_422(document: dict[str, Any]) -> None:
    """A wrong field is a 400, as in OpenAI's API, and never the framework's 422."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    assert operations
    assert not [operation["operationId"] for operation in operations if "422" in operation["responses"]]
