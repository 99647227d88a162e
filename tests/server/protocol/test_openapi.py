"""The served OpenAPI document: schemathesis holds a real server to it, and it says all that the server can do."""

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
# For each operation with a body, beside the boundary cases that follow from its schema.
DRAWN, DRAWN_WITHOUT_BODY = 250, 10
# Of conversations: tools need more room than there is, the model does not think, and a stop has one name.
LEFT_OUT = ("tools", "tool_choice", "instructions", "system", "reasoning", "thinking", "stop_sequences")
MODES = list(schemathesis.GenerationMode)
VALID = schemathesis.GenerationMode.POSITIVE
CHOICES = ("/v1/completions", "/v1/chat/completions")
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")
GENERATION = (*CHOICES, "/v1/responses", "/v1/messages")
ERRORS = {"400", "401", "404", "408", "413", "415", "429", "500", "503", "504"}
# What no client has to read: where the server's source and its files lie.
INTERNALS = re.compile(r'Traceback|File "|\.py\b|-packages|/(home|root|usr|opt|var|tmp)/')
# What decides how much is generated: the highest value here, and the highest that the document allows.
SMALL = {
    "n": (3, 128), "best_of": (3, 128), "max_tokens": (8, None), "max_completion_tokens": (8, None),
    "max_output_tokens": (8, None),
    "min_tokens": (8, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("checkpoint") / MODEL)
    limits = ("--max-model-len", "64", "--request-timeout", str(REQUEST_TIMEOUT_S))
    # In a model of this size, threads only wait for each other.
    with running("--model", str(folder), "--dtype", "float32", *limits, OMP_NUM_THREADS="1") as process:
        yield process


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def api(server: ServerProcess) -> schemathesis.BaseSchema:
    """The document as schemathesis reads it, with every check of its own but one."""
    # Otherwise it would try constants of whatever source is near.
    project = ProjectConfig(analysis=AnalysisConfig(constants=ConstantsConfig(enabled=False)), max_stream_events=1_000)
    # Valid by the schema is not all: there are rules between fields, a context length, a vocabulary, a model's name.
    # test_document.py has them by name.
    project.checks.update(excluded_check_names=["positive_data_acceptance"])
    # A field with "token" in its name is no secret here, and a failure is shown with the request that led to it.
    output = OutputConfig(sanitization=SanitizationConfig(enabled=False))
    config = SchemathesisConfig(projects=ProjectsConfig(default=project), output=output)
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, where there is a reference to it."""
    reference = schema.get("$ref")
    found: dict[str, Any] = document["components"]["schemas"][reference.split("/")[-1]] if reference else schema
    return found


def fields(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields of a POST's body, of all its forms together."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = resolved(document, schema)
    forms = [resolved(document, form) for form in schema.get("oneOf") or schema.get("anyOf") or [schema]]
    return {name: field for form in forms for name, field in form["properties"].items()}


def shorten(body: object) -> None:
    """Generate less, for the run to be short. Valid values stay valid, in the same order; others stay what they are.

    A client's own timeout goes up to the server's: one of a microsecond gets the 504 that it asked for.
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
    """A valid case once more, in agreement with what no schema can say, so that it is answered and not refused."""
    if case.meta is None or case.meta.generation.mode is not VALID:
        return None
    if "name" in case.path_parameters:
        return case.operation.Case(path_parameters={"name": f"{MODEL}@sparsity=0.5"})
    if not isinstance(case.body, dict):
        return None
    known = fields(document, case.operation.path)
    body = {name: value for name, value in case.body.items() if name in known} | {"model": MODEL}
    if "messages" in body:
        # A tool's message would need a call, and tools more room than there is.
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
        # As long as the context, otherwise.
        body["max_completion_tokens"] = body.get("max_completion_tokens") or 4
    if "max_output_tokens" in known:
        body["max_output_tokens"] = body.get("max_output_tokens") or 4
    if (body.get("griffin") or {}).get("prompt_tokens"):
        body["griffin"] = {**body["griffin"], "prompt_tokens": 1 if "echo" in known else None}
        body |= {"echo": True, "logprobs": 1} if "echo" in known else {}
    if "echo" in known and body.get("max_tokens") == 0:
        body |= {"echo": True, "min_tokens": 0}
    if body.get("sparsity") == "auto":
        # Of a model that was not measured.
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
    """Texts stay; a list of blocks or items, with rules between them, becomes a text."""
    return content if isinstance(content, str) and content else "Hi"


def _agreed(body: dict[str, Any]) -> dict[str, Any]:
    """A griffin object whose fields go together, of a server just started."""
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
    """Texts and lists cut to a few items, ids in the vocabulary."""
    if isinstance(value, list):
        return [_small(item) for item in value[:3]]
    return int(value) % tiny_checkpoint.VOCABULARY if isinstance(value, int | float) else value and value[:8]


def require_envelope(response: schemathesis.Response, path: str) -> None:
    """The API's error object and nothing else: short, and silent about the server's inside."""
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
    """Chunks to the end, as the document describes them, and no error among them: it would have been a status."""
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
    """The status of the answer, which is as the document says, and no fault of the server."""
    shorten(case.body)
    response = case.call(session=session, timeout=3 * REQUEST_TIMEOUT_S)
    streamed = response.headers.get("content-type", [""])[0].startswith("text/event-stream")
    # It would hold {"data": a text} to the schema, which is, as in OpenAI's document, that of what the text says.
    # And it does not know that a body too large to be read is refused, whatever is in it.
    excluded = [response_schema_conformance] if streamed else [negative_data_rejection] * (response.status_code == 413)
    case.validate_response(response, excluded_checks=excluded or None)
    assert response.status_code < 500
    if response.status_code >= 400:
        require_envelope(response, case.operation.path)
    elif streamed:
        require_whole_stream(response, case.operation.path, document)
    return response.status_code


def cases_of(operation: schemathesis.APIOperation) -> Iterator[schemathesis.Case]:
    """Boundary values, missing fields, wrong types, media types and methods; then drawn ones, always the same."""
    yield from operation.schema.iter_coverage_cases(
        operation, generation_modes=MODES, generation_config=GenerationConfig()
    )
    drawn: list[schemathesis.Case] = []

    # Nothing fails while they are drawn, so there is nothing to shrink, and no example is slow.
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
    """Thousands of valid and invalid requests: no server error, nothing undocumented, and nothing left broken."""
    cases, statuses = 0, Counter[int]()
    with requests.Session() as session:
        for result in api.get_all_operations():
            operation = result.ok()
            # One of each kind: what is wrong with one request is often wrong with a hundred.
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
    """What OpenAI's API does not have is in the document, each field with a sentence on what it does."""
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
    """Whatever goes wrong, a client finds the status and the API's error object in the document."""
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
    """Both forms of a 200 are in the document."""
    content = document["paths"][path]["post"]["responses"]["200"]["content"]

    assert set(content) == {"application/json", "text/event-stream"}
    answer = resolved(document, content["application/json"]["schema"])["properties"]
    assert {"choices", "output", "content"} & set(answer)
    assert {"usage", "griffin", "metrics"} <= set(answer)


def test_nothing_is_answered_with_422(document: dict[str, Any]) -> None:
    """A wrong field is a 400, as in OpenAI's API, and never the framework's own status."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    assert operations
    assert not [operation["operationId"] for operation in operations if "422" in operation["responses"]]
