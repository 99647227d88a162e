"""Fields of other servers: a value that asks for nothing is accepted, any other is refused by name."""

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import TypeAdapter, ValidationError

from server.http.explain import explain
from server.protocol.anthropic import CountTokensRequest, MessagesRequest
from server.protocol.chat import ChatRequest
from server.protocol.completion import CompletionRequest
from server.protocol.elsewhere import (
    HARMLESS,
    REFUSED,
    REFUSED_IN_ANTHROPIC,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    REFUSED_IN_DETOKENIZE,
    REFUSED_IN_RESPONSES,
    REFUSED_IN_TOKENIZE,
    TUNING,
)
from server.protocol.responses import ResponsesRequest
from server.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from tests.server.client import post
from tests.server.scripted import ScriptedEngine, served

API = (Path(__file__).parents[3] / "docs/api.md").read_text()
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "hi"}]
TABLES = {
    COMPLETIONS: {**REFUSED, **REFUSED_IN_COMPLETIONS},
    CHAT: {**REFUSED, **REFUSED_IN_CHAT},
    RESPONSES: REFUSED_IN_RESPONSES,
    MESSAGES: REFUSED_IN_ANTHROPIC,
    COUNT: REFUSED_IN_ANTHROPIC,
    "/tokenize": REFUSED_IN_TOKENIZE,
    "/detokenize": REFUSED_IN_DETOKENIZE,
}
BASES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hi", "max_tokens": 3},
    CHAT: {"messages": HI, "max_tokens": 3},
    RESPONSES: {"input": "hi", "max_output_tokens": 3},
    MESSAGES: {"messages": HI, "max_tokens": 3},
    COUNT: {"messages": HI},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [104]},
}
# For none of the fields does this value ask for nothing.
SOMETHING = {"of": "another kind"}
# Values that clients, SDKs and pages send by default.
USUAL: dict[str, Any] = {
    "top_p": 0, "top_k": -1, "min_p": 0, "n": None, "stop": [], "logit_bias": {}, "tools": [], "tool_choice": "auto",
    "functions": None, "function_call": "none", "response_format": {"type": "text"}, "reasoning_effort": "none",
    "stream_options": {}, "modalities": ["text"], "verbosity": "medium", "service_tier": "default", "suffix": "",
    "best_of": 1, "echo": False, "max_completion_tokens": None, "logprobs": False, "top_logprobs": 0, "seed": None,
    "audio": None, "prediction": None, "metadata": {}, "store": False, "user": "", "parallel_tool_calls": False,
    "logits_processors": [], "truncate_prompt_tokens": None, "length_penalty": 1.0, "early_stopping": False,
    "use_beam_search": False, "prompt_logprobs": None, "bad_words": [], "allowed_token_ids": None,
    "truncation_side": "left", "documents": [], "thinking_token_budget": -1, "spaces_between_special_tokens": True,
    "typical_p": 1, "mirostat": 0, "mirostat_tau": 4.2, "mirostat_eta": 0.3, "xtc_probability": 0.0,
    "xtc_threshold": 0.25, "dry_multiplier": 0, "dry_base": 2, "dry_allowed_length": 4, "dry_penalty_last_n": 99,
    "dry_sequence_breakers": ["x"], "dynatemp_range": 0, "dynatemp_exponent": 2, "repeat_last_n": 64,
    "repeat_penalty": 1.0, "n_probs": 0, "min_keep": 0, "n_keep": 5, "cache_prompt": True, "id_slot": -1, "grammar": "",
    "samplers": [], "tfs_z": 1.0, "top_n_sigma": -1, "t_max_predict_ms": 0, "keep_alive": "5m", "options": {},
    "do_sample": True, "watermark": False, "decoder_input_details": False, "return_full_text": False,
    "smoothing_factor": 0.0, "guidance_scale": 1, "negative_prompt": "", "ban_eos_token": False, "add_bos_token": True,
    "lora_path": None, "stop_regex": None, "no_stop_trim": False, "regex": None, "model": "", "timeout": None,
}  # fmt: skip
# Values that ask for something.
REFUSED_VALUES: list[tuple[str, Any]] = [
    ("truncation_side", "right"), ("mirostat", 2), ("mirostat_mode", 1), ("mirostat_tau", 3), ("xtc_probability", 0.5),
    ("xtc_threshold", 0.3), ("dry_multiplier", 0.8), ("dry_base", 2), ("stop_regex", "a+"), ("stop_regex", ["a+"]),
    ("documents", [{"text": "x"}]), ("thinking_token_budget", 10), ("prompt_token_ids", [1, 2]), ("cache_salt", "a"),
    ("do_sample", False), ("typical_p", 0.9), ("samplers", ["top_k"]), ("guided_json", {"type": "object"}),
    ("think", True), ("options", {"temperature": 0}), ("num_predict", 5), ("n_cmpl", 2),
    ("t_max_predict_ms", 100), ("top_n_sigma", 1.5), ("dynatemp_range", 0.5), ("use_beam_search", True),
    ("bad_words", ["x"]), ("allowed_token_ids", [1]), ("prompt_logprobs", 0), ("prompt_logprobs", True),
    ("use_beam_search", 0), ("length_penalty", True), ("verbosity", "low"), ("tool_choice", "required"),
    ("lora", [{"id": 0, "scale": 1}]), ("guidance_scale", 1.5), ("repeat_last_n", 64),
]  # fmt: skip


ADAPTERS: dict[str, TypeAdapter[Any]] = {
    COMPLETIONS: TypeAdapter(CompletionRequest),
    CHAT: TypeAdapter(ChatRequest),
    RESPONSES: TypeAdapter(ResponsesRequest),
    MESSAGES: TypeAdapter(MessagesRequest),
    COUNT: TypeAdapter(CountTokensRequest),
    "/tokenize": TypeAdapter(TokenizeRequest),
    "/detokenize": TypeAdapter(DetokenizeRequest),
}


def refusal(path: str, body: dict[str, Any]) -> tuple[str | None, str] | None:
    """The field and code of the error. None if the body is accepted and all its keys are known."""
    try:
        request = ADAPTERS[path].validate_python(body)
    except ValidationError as errors:
        error = explain(errors.errors())
        assert str(error).startswith(str(error.param))
        return error.param, error.code
    assert request.ignored() == []
    return None


@pytest.mark.parametrize("path", TABLES)
def test_each_value_that_asks_for_nothing_is_accepted(path: str) -> None:
    """Each value of the tables, and null for every field; the header lists none of them."""
    asked = [(name, value) for name, field in TABLES[path].items() for value in (None, *field.nothing)]

    assert [pair for pair in asked if refusal(path, {**BASES[path], pair[0]: pair[1]})] == []


@pytest.mark.parametrize("path", TABLES)
def test_each_field_that_is_not_honoured_is_refused_by_name(path: str) -> None:
    """Each field is sent with a value that asks for something."""
    penalty = {} if path.endswith(("tokenize", "count_tokens")) else {"repeat_penalty": 1.1}
    found = {name: refusal(path, {**BASES[path], **penalty, name: SOMETHING}) for name in TABLES[path]}

    assert found == {name: (name, "unsupported_parameter") for name in TABLES[path]}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_what_clients_usually_send_is_accepted(path: str) -> None:
    """Both endpoints accept the fields one by one and all together."""
    alone = {name: refusal(path, {**BASES[path], **_master(name), name: value}) for name, value in USUAL.items()}
    with served(ScriptedEngine()) as url:
        together = post(url, path, **BASES[path], **USUAL)

    assert not any(alone.values()), alone
    assert together.status_code == 200, together.text
    assert "x-griffin-ignored" not in together.headers


def _master(name: str) -> dict[str, Any]:
    """The field that switches the mechanism of ``name`` off, as clients send it."""
    return {TUNING[name].of[0]: 0} if name in TUNING else {}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(("name", "value"), REFUSED_VALUES)
def test_values_that_ask_for_something_are_refused(path: str, name: str, value: object) -> None:
    """Both endpoints refuse them."""
    if (path, name) == (CHAT, "tool_choice"):
        pytest.skip("a field of chat")
    assert refusal(path, {**BASES[path], "repeat_penalty": 1.1, name: value}) == (name, "unsupported_parameter")


def test_the_error_names_the_mechanism_that_is_on() -> None:
    """The error does not name a field that tunes the mechanism."""
    with served(ScriptedEngine()) as url:
        error = post(url, mirostat_tau=3, mirostat=2).json()["error"]

    assert error["param"] == "mirostat"


def test_misspelt_and_meaningless_keys_stay_in_the_header() -> None:
    """No server knows these fields."""
    with served(ScriptedEngine()) as url:
        answer = post(url, max_tokens=1, mirostats=1, n_predicts=3, foo={"bar": 1}, cache_prompt=True)

    assert answer.status_code == 200
    assert answer.headers["x-griffin-ignored"] == "foo,mirostats,n_predicts"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens"])
def test_a_limit_by_any_name(path: str, name: str) -> None:
    """Each name works, -1 is the rest of the context, and errors name the field that was sent."""
    if (path, name) == (COMPLETIONS, "max_completion_tokens"):
        pytest.skip("a field of chat alone")
    base = {key: value for key, value in BASES[path].items() if key != "max_tokens"}
    with served(ScriptedEngine(context_length=100)) as url:
        five = post(url, path, **base, **{name: 5}).json()["usage"]["completion_tokens"]
        all_of_it = post(url, path, **base, **{name: -1}).json()["usage"]["total_tokens"]
        below = post(url, path, **base, **{name: -2}).json()["error"]
        least = post(url, path, **base, **{name: 5, "min_tokens": 6}).json()["error"]
        zero = post(url, path, **base, **{name: 0}).json()["error"]
        text = post(url, path, **base, **{name: "5"}).json()["error"]

    assert (five, all_of_it) == (5, 100)
    assert [error["param"] for error in (below, least, zero, text)] == [name, "min_tokens", name, name]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"max_tokens": 3, "n_predict": 4}, "n_predict"),
        (COMPLETIONS, {"max_tokens": 3, "n_predict": -1}, "n_predict"),
        (COMPLETIONS, {"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repeat_penalty"),
        (COMPLETIONS, {"include_stop_str_in_output": False, "no_stop_trim": True}, "no_stop_trim"),
        (CHAT, {"max_completion_tokens": 3, "n_predict": 4}, "n_predict"),
        (CHAT, {"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens"),
        (COMPLETIONS, {"max_tokens": 3, "n_predict": 3}, None),
        (COMPLETIONS, {"repetition_penalty": 1.1, "repeat_penalty": 1.1}, None),
        (CHAT, {"max_completion_tokens": 3, "max_tokens": 4}, None),
    ],
)
def test_twins_that_differ_are_refused_by_name(path: str, body: dict[str, Any], param: str | None) -> None:
    """Two names of one field must agree. Only OpenAI's newer name for the limit wins over its older one."""
    base = {key: value for key, value in BASES[path].items() if key != "max_tokens"}
    with served(ScriptedEngine()) as url:
        answer = post(url, path, **base, **body)

    assert answer.json().get("error", {}).get("param") == param
    if param is None:
        assert answer.json()["usage"]["completion_tokens"] in (3, 16)


def test_twins_are_honoured() -> None:
    """Each works as the field that it stands for."""
    request = CompletionRequest(prompt="hi", repeat_penalty=1.5, no_stop_trim=True, n_predict=7)

    assert (request.repetition_penalty, request.include_stop_str_in_output, request.token_limit()) == (1.5, True, 7)


def test_a_seed_of_minus_one_is_none() -> None:
    """vLLM and llama.cpp take -1 for a random seed."""
    assert CompletionRequest(prompt="hi", seed=-1).seed is None
    assert CompletionRequest(prompt="hi", seed=-2).seed == -2


@pytest.mark.parametrize(
    ("request_type", "params"),
    [
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (ChatRequest, chat_create_params.CompletionCreateParamsBase),
        (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
        (MessagesRequest, message_create_params.MessageCreateParamsBase),
        (CountTokensRequest, message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_the_sdk_is_known(request_type: Any, params: Any) -> None:
    """Each field of both installed SDKs is honoured, refused or known to be harmless."""
    known = set(request_type.model_fields) | set(request_type.refused) | HARMLESS

    assert set(get_type_hints(params)) - known == set()


def test_no_field_is_in_two_tables() -> None:
    """The tables overlap neither with each other nor with the fields that are honoured."""
    for request_type in (CompletionRequest, ChatRequest, ResponsesRequest, MessagesRequest, CountTokensRequest):
        # ``store`` has no effect in the other APIs; in /v1/responses it would keep the answer.
        tables = [set(request_type.refused) - {"store"}, set(TUNING), set(HARMLESS)]
        fields = set(request_type.model_fields) - {"user", "metadata"}
        assert sum(map(len, [*tables, fields])) == len(set().union(*tables, fields))
    assert all(master in REFUSED for tuning in TUNING.values() for master in tuning.of)


def test_the_tables_are_documented() -> None:
    """The section in docs/api.md names exactly the fields of the tables."""
    section = API.split("### Fields of other servers")[1].split("\n##")[0]
    fields = {*HARMLESS, *TUNING, *(name for table in TABLES.values() for name in table)}
    named = set(re.findall(r"`(\w+)`", section))

    assert fields - named == set()
    assert named - fields - set(CompletionRequest.model_fields) == {
        "unsupported_parameter",
        "false",
        "patternProperties",
    }
