"""The fields of OpenAI's API over real HTTP, with a scripted engine whose text is known."""

from typing import Any

import httpx
import pytest

from tests.server.client import metric, post, stream
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


@pytest.mark.parametrize(
    ("prompt", "echoed"),
    [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([97, 98], ["ab"]), ([[97, 98], [99]], ["ab", "c"]),
     (["ab", [99]], ["ab", "c"])],
)  # fmt: skip
def test_prompts_in_all_forms(prompt: object, echoed: list[str]) -> None:
    """A text, texts, ids, lists of ids, and a mixture; choices are in the order of the prompts."""
    with served(engine := ScriptedEngine()) as url:
        answer = post(url, prompt=prompt, max_tokens=2, echo=True)

    assert texts(answer) == [text + "ab" for text in echoed]
    assert engine.reads == [len(text) for text in echoed]
    assert answer.json()["usage"] == {
        "prompt_tokens": sum(map(len, echoed)), "completion_tokens": 2 * len(echoed),
        "total_tokens": sum(map(len, echoed)) + 2 * len(echoed), "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


def test_several_answers_from_one_reading() -> None:
    """Each prompt is read once for its n answers; answer i is what seed + i gives alone."""
    with served(engine := ScriptedEngine()) as url:
        together = texts(post(url, prompt=["x", "yy"], n=3, seed=4, max_tokens=2))
        alone = [texts(post(url, prompt="x", seed=seed, max_tokens=2))[0] for seed in (4, 5, 6)]

    assert together == alone * 2 == ["ef", "fg", "gh"] * 2
    assert engine.reads[:2] == [1, 2]
    assert len(engine.reads) == 5


def test_chunks_of_several_answers_name_their_answer() -> None:
    """Each chunk belongs to one choice, each choice ends once, and usage counts them all."""
    with served(ScriptedEngine()) as url:
        *chunks, usage = stream(
            url, prompt=["x", "y"], n=2, seed=0, max_tokens=2, stream_options={"include_usage": True}
        )

    by_index: dict[int, str] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        by_index[choice["index"]] = by_index.get(choice["index"], "") + choice["text"]
    assert by_index == {0: "ab", 1: "bc", 2: "ab", 3: "bc"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("length") == 4
    assert usage["usage"]["completion_tokens"] == 8


def test_best_of_returns_the_most_probable() -> None:
    """The mean log-probability decides, and usage counts all generated tokens."""
    with served(ScriptedEngine()) as url:
        answer = post(url, best_of=4, n=2, seed=0, max_tokens=4, stop="d")

    # Seeds 0 to 3 give abcd, bcde, cdef, defg, and each token is less probable than the one before it.
    assert texts(answer) == ["", "c"]
    assert answer.json()["usage"]["completion_tokens"] == 4 + 3 + 2 + 1
    assert answer.json()["choices"][0]["logprobs"] is None


def test_logprobs_in_the_legacy_arrays() -> None:
    """Alternatives include the chosen token, and offsets point into the text."""
    with served(ScriptedEngine()) as url:
        logprobs = post(url, max_tokens=2, logprobs=2).json()["choices"][0]["logprobs"]
        least = post(url, max_tokens=1, logprobs=0).json()["choices"][0]["logprobs"]

    assert logprobs == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.1, -0.2],
        "top_logprobs": [{"a": -0.1, "b": -1.1}, {"b": -0.2, "c": -1.2}],
        "text_offset": [0, 1],
    }
    assert least["top_logprobs"] == [{"a": -0.1}]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_covers_prompt_and_answer(max_tokens: int) -> None:
    """As lm-eval reads it: the first token has no score, every other one has, generated ones too."""
    with served(ScriptedEngine()) as url:
        (choice,) = post(url, prompt="xyz", max_tokens=max_tokens, logprobs=1, echo=True).json()["choices"]

    generated = ["a"][:max_tokens]
    assert choice["text"] == "xyz" + "".join(generated)
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["x", "y", "z", *generated]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.1, -0.2, *[-0.1][:max_tokens]]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == list(range(3 + max_tokens))


def test_echo_without_an_answer() -> None:
    """max_tokens=0 without logprobs returns the prompt n times."""
    with served(ScriptedEngine()) as url:
        answer = post(url, prompt=["ab", "c"], n=2, max_tokens=0, echo=True)

    assert texts(answer) == ["ab", "ab", "c", "c"]
    assert answer.json()["usage"]["completion_tokens"] == 0


def test_streamed_echo_and_logprobs_join_to_the_whole() -> None:
    """The arrays of all chunks together are those of the whole answer."""
    ask: dict[str, Any] = {"prompt": "xyz", "max_tokens": 3, "logprobs": 1, "echo": True}
    with served(ScriptedEngine()) as url:
        whole = post(url, **ask).json()["choices"][0]
        chunks = [event["choices"][0] for event in stream(url, **ask)]

    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for chunk in chunks for value in chunk["logprobs"][name]] == values


def test_stop_string_in_the_output() -> None:
    """With include_stop_str_in_output the text ends after the stop string."""
    with served(ScriptedEngine()) as url:
        answer = post(url, stop="cd", include_stop_str_in_output=True)

    assert texts(answer) == ["abcd"]
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_min_tokens_puts_off_stop_strings() -> None:
    """A stop string within the first tokens does not count; a later one does."""
    with served(ScriptedEngine()) as url:
        answer = post(url, stop="c", min_tokens=5, max_tokens=30)

    assert texts(answer) == ["abcdefghijab"]


def test_min_tokens_holds_for_what_was_held_back() -> None:
    """A stop string in the first tokens does not count, even if its text is released only at the end."""

    class Halves(CharacterTokenizer):
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            text = super().decode(ids, skip_special_tokens=skip_special_tokens)
            return text.replace("b", "\ufffd") if text.endswith("b") else text

    with served(ScriptedEngine(), tokenizer=Halves()) as url:
        answer = post(url, max_tokens=2, min_tokens=2, stop="\ufffd")

    assert texts(answer) == ["a\ufffd"]
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_other_paths_are_not_redirected() -> None:
    """A redirect would lose the body and repeat the host that the client named."""
    with served(ScriptedEngine()) as url:
        assert post(url, "/v1/completions/").status_code == 404


def test_min_tokens_raises_the_default_limit() -> None:
    """A request for at least twenty tokens gets more than the default of sixteen."""
    with served(ScriptedEngine()) as url:
        assert post(url, min_tokens=20).json()["usage"]["completion_tokens"] == 20


def test_an_answer_of_too_many_scores_is_refused() -> None:
    """Each of n answers would repeat the prompt's scores with all alternatives."""
    with served(ScriptedEngine(context_length=10_000)) as url:
        answer = post(url, prompt="x" * 9000, echo=True, max_tokens=0, n=128, logprobs=20)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")


def test_a_large_answer_arrives_whole() -> None:
    """It is built outside the event loop and sent in parts."""
    with served(ScriptedEngine(context_length=10_000)) as url:
        (choice,) = post(url, prompt="x" * 9000, echo=True, max_tokens=1, logprobs=5).json()["choices"]

    assert len(choice["logprobs"]["top_logprobs"]) == 9001
    assert choice["logprobs"]["text_offset"] == list(range(9001))


def test_token_ids_on_request() -> None:
    """The ids of prompt and answer are there, streamed or not."""
    with served(ScriptedEngine()) as url:
        (choice,) = post(url, prompt="hi", max_tokens=2, return_token_ids=True).json()["choices"]
        chunks = [event["choices"][0] for event in stream(url, prompt="hi", max_tokens=2, return_token_ids=True)]

    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([104, 105], [97, 98])
    assert [chunk["token_ids"] for chunk in chunks] == [[97], [98]]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[104, 105], None]


@pytest.mark.parametrize(("kept", "echoed"), [(3, "fgh"), (20, "abcdefgh"), (-1, "abcdefgh")])
def test_prompts_are_truncated_from_the_left(kept: int, echoed: str) -> None:
    """The end of a prompt is kept, as it matters most."""
    with served(ScriptedEngine()) as url:
        answer = post(url, prompt="abcdefgh", max_tokens=1, echo=True, truncate_prompt_tokens=kept)

    assert texts(answer) == [echoed + "a"]
    assert answer.json()["usage"]["prompt_tokens"] == len(echoed)


def test_truncation_makes_room_for_the_answer() -> None:
    """-1 keeps as much of the text's end as fits beside the answer."""
    with served(ScriptedEngine(context_length=100)) as url:
        answer = post(url, prompt="x" * 100_000, max_tokens=10, truncate_prompt_tokens=-1)

    assert answer.json()["usage"]["prompt_tokens"] == 90


def test_usage_in_every_chunk() -> None:
    """continuous_usage_stats counts up; without include_usage it has no effect."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    with served(ScriptedEngine()) as url:
        events = stream(url, max_tokens=3, stream_options=options)
        without = stream(url, max_tokens=3, stream_options={**options, "include_usage": False})

    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]
    assert len(without) == 3
    assert all(event.get("usage") is None for event in without)


@pytest.mark.parametrize(
    ("model", "header", "body", "applied"),
    [
        (None, None, None, 0.25),
        ("scripted", None, None, 0.25),
        ("scripted@sparsity=0.5", None, None, 0.5),
        (None, "0.5", None, 0.5),
        (None, None, 0, 0.0),
        ("scripted@sparsity=0", None, None, 0.0),
        ("scripted@sparsity=0.5", "0.5", 0.5, 0.5),
    ],
)
def test_sparsity_by_field_by_header_and_by_name(
    model: str | None, header: str | None, body: float | None, applied: float
) -> None:
    """Some clients cannot add a field. The answer repeats the model's name as the client sent it."""
    with served(ScriptedEngine(), sparsity=0.25) as url:
        headers = {"x-griffin-sparsity": header} if header else None
        answer = post(url, headers=headers, model=model, sparsity=body, max_tokens=3).json()

    assert answer["griffin"]["sparsity"] == applied
    assert answer["model"] == model or "scripted"


@pytest.mark.parametrize(
    ("model", "header", "body", "status", "param"),
    [
        ("scripted@sparsity=0.5", None, 0.25, 400, "sparsity"),
        ("scripted", "0.5", 0.25, 400, "sparsity"),
        (None, "much", None, 400, "x-griffin-sparsity"),
        (None, "nan", None, 400, "x-griffin-sparsity"),
        ("scripted@sparsity=1", None, None, 400, "model"),
        ("scripted@sparsity=", None, None, 400, "model"),
        ("scripted@sparsity= 0.5", None, None, 400, "model"),
        ("scripted@sparsity=0_0.5", None, None, 400, "model"),
        ("scripted@sparsity=\u0660.\u0665", None, None, 400, "model"),
        ("scripted@density=0.5", None, None, 404, "model"),
        ("other@sparsity=0.5", None, None, 404, "model"),
    ],
)
def test_an_ambiguous_or_invalid_sparsity_is_refused(
    model: str | None, header: str | None, body: float | None, status: int, param: str
) -> None:
    """Two different values or an invalid one are refused, not guessed."""
    with served(ScriptedEngine()) as url:
        answer = post(url, headers={"x-griffin-sparsity": header} if header else None, model=model, sparsity=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_sparse_scoring_reports_its_neurons() -> None:
    """A request with echo, logprobs and a sparsity reports its kept neurons, although it generates no token."""
    with served(ScriptedEngine()) as url:
        report = post(url, prompt="xyz", max_tokens=0, echo=True, logprobs=0, sparsity=0.5).json()["griffin"]

    assert (report["sparsity"], report["reason"], report["expert_set"]) == (0.5, "requested", "cafe")


def test_chat_in_one_object() -> None:
    """The template makes the prompt; the answer is a message of the assistant."""
    conversation = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ]
    with served(ScriptedEngine()) as url:
        answer = post(url, CHAT, messages=conversation, max_completion_tokens=3, sparsity=0.5).json()

    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "abc", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len("system:be brief;user:hi;assistant:")
    assert answer["griffin"]["sparsity"] == 0.5


def test_chat_stream_begins_with_the_role() -> None:
    """Then come a delta for each token, the reason with the last one, and usage without choices."""
    with served(ScriptedEngine()) as url:
        first, *chunks, usage = stream(url, CHAT, messages=HI, max_tokens=3, stream_options={"include_usage": True})

    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": text} for text in "abc"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)


def test_chat_logprobs() -> None:
    """Each token has its bytes and the requested number of alternatives."""
    with served(ScriptedEngine()) as url:
        logprobs = post(url, CHAT, messages=HI, max_tokens=1, logprobs=True, top_logprobs=2).json()["choices"][0][
            "logprobs"
        ]
        bare = post(url, CHAT, messages=HI, max_tokens=1, logprobs=True).json()["choices"][0]["logprobs"]

    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -1.1, "bytes": [98]}]
    assert logprobs == {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
    assert bare["content"][0]["top_logprobs"] == []


def test_chat_answers_as_long_as_the_context() -> None:
    """Without a given limit only the context limits the answer."""
    with served(ScriptedEngine(context_length=40)) as url:
        usage = post(url, CHAT, messages=HI, ignore_eos=True).json()["usage"]

    assert usage["total_tokens"] == 40


def test_chat_continues_a_message() -> None:
    """With continue_final_message the model continues the assistant's last message."""
    messages = [*HI, {"role": "assistant", "content": "well"}]
    with served(ScriptedEngine()) as url:
        usage = post(url, CHAT, messages=messages, max_tokens=1, continue_final_message=True).json()["usage"]

    assert usage["prompt_tokens"] == len("user:hi;assistant:well;")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "tool", "content": "42"}]}, "messages[0].tool_call_id"),
        ({}, "messages"),
        ({"messages": HI, "tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"messages": HI, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HI, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": HI, "reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": HI, "max_reasoning_tokens": 9}, "max_reasoning_tokens"),
        ({"messages": HI, "modalities": ["audio"]}, "modalities"),
        ({"messages": HI, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": HI, "logprobs": 2}, "logprobs"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens"),
        ({"messages": HI, "chat_template": "{{ 7 }}"}, "chat_template"),
        ({"messages": HI, "chat_template_kwargs": {"chat_template": "{{ 7 }}"}}, "chat_template_kwargs"),
        ({"messages": HI, "chat_template_kwargs": {"a": [[]] * 2000}}, "chat_template_kwargs"),
        ({"messages": HI, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"messages": HI, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": HI, "griffin": {"prompt_tokens": 3}}, "griffin.prompt_tokens"),
    ],
)
def test_invalid_chats_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Each is a 400 in OpenAI's form."""
    with served(ScriptedEngine()) as url:
        answer = post(url, CHAT, **body)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert len(answer.content) < 800


@pytest.mark.parametrize(
    ("body", "param"),
    [({"max_completion_tokens": 999}, "max_completion_tokens"), ({"max_tokens": 999}, "max_tokens"),
     ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
     ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "messages")],
)  # fmt: skip
def test_chat_errors_speak_of_chat_fields(body: dict[str, Any], param: str) -> None:
    """Errors do not use the engine's names."""
    with served(ScriptedEngine(), overlong_max_tokens="refuse") as url:
        error = post(url, CHAT, **{"messages": HI, **body}).json()["error"]

    assert error["param"] == param
    assert param == "messages" or error["message"].startswith(f"{param}: 999 do not fit")


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    """SDKs send all these fields with values that ask for nothing."""
    nothing = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"],
               "user": "me", "store": False, "metadata": {}, "service_tier": "auto", "n": None, "stop": None,
               "logit_bias": None, "logprobs": None, "max_tokens": None, "parallel_tool_calls": True}  # fmt: skip
    with served(ScriptedEngine()) as url:
        answer = post(url, CHAT, messages=HI, max_completion_tokens=1, **nothing)

    assert answer.status_code == 200
    assert "x-griffin-ignored" not in answer.headers


def test_a_model_without_a_template_does_not_chat() -> None:
    """The error says so and names another endpoint."""

    class Plain(CharacterTokenizer):
        chat_template = None

    with served(ScriptedEngine(), tokenizer=Plain()) as url:
        error = post(url, CHAT, messages=HI).json()["error"]

    assert (error["code"], error["param"]) == ("no_chat_template", "messages")
    assert "/v1/completions" in error["message"]


@pytest.mark.parametrize(("method", "quarter", "half"), [("griffin+", 1270, 954), ("griffin", 1300, 1000)])
def test_models_and_their_aliases(method: str, quarter: int, half: int) -> None:
    """The list has sizes, context and aliases with other sparsities; bytes are those of the default method."""
    with served(ScriptedEngine(), method=method, sparsity=0.25) as url:
        model, *aliases = httpx.get(f"{url}/v1/models").json()["data"]
        one = httpx.get(f"{url}/v1/models/scripted@sparsity=0.5").json()
        missing = httpx.get(f"{url}/v1/models/other")

    assert (model["id"], model["max_model_len"], model["sparsity"]) == ("scripted", 1000, 0.25)
    assert model["parameters"] == {"total": 1000, "feed_forward": 600, "active": 850}
    assert model["bytes_per_token"] == {"total": 1600, "feed_forward": 1200, "active": quarter}
    assert [alias["id"] for alias in aliases] == model["aliases"]
    assert one == aliases[1]
    assert (one["root"], one["parent"], one["parameters"]["active"]) == ("scripted", "scripted", 700)
    assert (one["bytes_per_token"]["total"], one["bytes_per_token"]["active"]) == (1600, half)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_tokenize_and_detokenize() -> None:
    """The forms are vLLM's, so that its clients and lm-eval find a tokenizer here."""
    with served(ScriptedEngine()) as url:
        tokens = post(url, "/tokenize", prompt="hi").json()
        strings = post(url, "/tokenize", prompt="hi", return_token_strs=True).json()["token_strs"]
        chat = post(url, "/tokenize", messages=HI).json()["count"]
        text = post(url, "/detokenize", tokens=[104, 105]).json()
        refused = post(url, "/detokenize", tokens=[2**31 - 1])
        neither = post(url, "/tokenize", text="hi")
        info = httpx.get(f"{url}/tokenizer_info").json()
        misspelt = post(url, "/tokenize", prompt="hi", add_special_token=False)
        tools = post(url, "/tokenize", prompt="hi", tools=[{"type": "function"}])

    assert tokens == {"count": 2, "max_model_len": 1000, "tokens": [104, 105], "token_strs": None}
    assert (strings, chat, text) == (["h", "i"], len("user:hi;assistant:"), {"prompt": "hi"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")
    assert (neither.status_code, neither.json()["error"]["param"]) == (400, "prompt")
    assert misspelt.headers["x-griffin-ignored"] == "add_special_token"
    assert tools.json()["error"]["param"] == "tools"
    assert (info["eos_token"], info["chat_template"]) == ("<end>", "roles and texts")


def test_one_of_several_chat_templates() -> None:
    """/tokenizer_info gives the template that chats use, as a text."""
    tokenizer = CharacterTokenizer()
    tokenizer.chat_template = {"default": "roles and texts", "tool_use": "tools"}
    with served(ScriptedEngine(), tokenizer=tokenizer) as url:
        assert httpx.get(f"{url}/tokenizer_info").json()["chat_template"] == "roles and texts"


def test_health_readiness_and_version() -> None:
    """HEAD works too, as load balancers use it."""
    with served(ScriptedEngine()) as url:
        for path in ("/health", "/ready"):
            assert httpx.head(f"{url}{path}").status_code == httpx.get(f"{url}{path}").status_code == 200
        assert set(httpx.get(f"{url}/version").json()) == {"version"}


def test_all_endpoints_count_into_the_same_metrics() -> None:
    """Accepted requests are the finished, the abandoned and the failed ones."""
    with served(ScriptedEngine()) as url:
        post(url, prompt=["a", "b"], n=2, max_tokens=3)
        post(url, CHAT, messages=HI, max_tokens=3)

        assert metric(url, "griffin_requests_accepted_total") == metric(url, "griffin_request_success_total") == 2
        assert metric(url, "griffin_generation_tokens_total") == 4 * 3 + 3
        # Only gaps within one sequence count.
        assert metric(url, "griffin_inter_token_latency_seconds_count") == 5 * 2
