"""OpenAI's own SDK for Python: all that it offers for this API works as with OpenAI's server."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest
import torch

from griffin.model.loading import Checkpoint
from tests.clients.common import MESSAGES, MODEL, PROMPT
from tests.server.client import metric
from tests.server.process import running
from tests.server.scripted import wait_until

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}
USAGE = {"include_usage": True}
KEY = "second"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def strict(url: str) -> Iterator[openai.OpenAI]:
    """A client that refuses answers that do not fit OpenAI's types."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


# Completions


def test_completion(client: openai.OpenAI) -> None:
    """One prompt gives one text."""
    answer = client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=8)

    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", MODEL, "cmpl-")
    assert (answer.choices[0].index, answer.choices[0].finish_reason) == (0, "length")
    assert answer.choices[0].text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (27, 8, 35)


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_streamed_completion_is_the_same_text(client: openai.OpenAI, sparsity: float) -> None:
    """Each token has a chunk; the last chunk has usage, griffin and metrics."""
    ask: dict[str, Any] = {**GREEDY, "prompt": PROMPT, "max_tokens": 12, "extra_body": {"sparsity": sparsity}}
    whole = client.completions.create(**ask)
    *chunks, last = client.completions.create(**ask, stream=True, stream_options=USAGE)

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["length"]
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert (last.choices, last.usage) == ([], whole.usage)
    assert last.griffin["expert_set"] == whole.griffin["expert_set"]
    assert last.griffin["sparsity"] == sparsity
    assert last.metrics["tokens_per_second"] > 0


def test_a_prompt_in_all_four_forms(client: openai.OpenAI, smollm2: Checkpoint) -> None:
    """A text, a list of texts, ids, and a list of lists of ids give the same answer."""
    ids = smollm2.tokenizer(PROMPT).input_ids
    answers = [
        client.completions.create(**GREEDY, prompt=prompt, max_tokens=8) for prompt in (PROMPT, [PROMPT], ids, [ids])
    ]

    assert len({answer.choices[0].text for answer in answers}) == 1
    assert all(answer.usage == answers[0].usage for answer in answers)


def test_several_prompts_and_several_answers_to_each(client: openai.OpenAI) -> None:
    """The n answers to a prompt stand together, in the order of the prompts."""
    prompts = [PROMPT, "The capital of France is"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=4, n=2, seed=1, logprobs=0, echo=True)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(prompts[choice.index // 2]) for choice in answer.choices] == [True] * 4
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in answer.choices) - 2 * (
        27 + 5
    )


def test_several_streamed_answers(client: openai.OpenAI) -> None:
    """Each chunk names its answer, and the chunks join to the texts of the whole object."""
    ask: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "n": 2, "seed": 3}
    texts = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text

    assert texts == [choice.text for choice in client.completions.create(**ask).choices]


@torch.inference_mode()
def test_scores_of_a_prompt_are_the_models_own(client: openai.OpenAI, smollm2: Checkpoint) -> None:
    """echo, logprobs and max_tokens=0 give each token's log-probability under the model."""
    ids = smollm2.tokenizer(PROMPT, return_tensors="pt").input_ids
    logprobs = smollm2.model(ids).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
    answer = client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    scores = answer.choices[0].logprobs

    assert answer.choices[0].text == "".join(scores.tokens) == PROMPT
    assert scores.token_logprobs[0] is scores.top_logprobs[0] is None
    assert scores.token_logprobs[1:] == pytest.approx(expected, abs=2e-3)
    assert [max(top.values()) for top in scores.top_logprobs[1:]] == pytest.approx(logprobs.amax(-1).tolist(), abs=2e-3)
    for token, start in zip(scores.tokens, scores.text_offset, strict=True):
        assert PROMPT[start:].startswith(token)
    assert answer.usage.completion_tokens == 0


def test_stop_and_penalties(client: openai.OpenAI) -> None:
    """The SDK's method has arguments for OpenAI's sampling fields."""
    answer = client.completions.create(
        **GREEDY, prompt="One, two, three, four,", max_tokens=24, stop=[" seven", "\n"], presence_penalty=0.1,
        frequency_penalty=0.1, top_p=0.9, logit_bias={"0": -100}, seed=1, user="a-user", best_of=1,
    )  # fmt: skip

    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" five, six,", "stop")


# Chat


def test_chat(client: openai.OpenAI) -> None:
    """A conversation gives a message."""
    answer = client.chat.completions.create(**GREEDY, messages=MESSAGES, max_completion_tokens=24)
    choice = answer.choices[0]

    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", MODEL, "chatcmpl-")
    assert (choice.message.role, choice.finish_reason, choice.message.refusal) == ("assistant", "stop", None)
    assert "Paris" in choice.message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_streamed_chat_is_the_same_message(client: openai.OpenAI, sparsity: float) -> None:
    """The role comes first and once; the usage chunk has the report."""
    ask: dict[str, Any] = {**GREEDY, "messages": MESSAGES, "max_tokens": 12, "extra_body": {"sparsity": sparsity}}
    whole = client.chat.completions.create(**ask)
    first, *chunks, last = client.chat.completions.create(**ask, stream=True, stream_options=USAGE)

    assert (first.object, first.choices[0].delta.role) == ("chat.completion.chunk", "assistant")
    assert all(chunk.choices[0].delta.role is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    assert last.griffin["expert_set"] == whole.griffin["expert_set"]
    assert last.griffin["sparsity"] == sparsity


def test_the_helper_for_chat_streams(client: openai.OpenAI) -> None:
    """chat.completions.stream() builds the object that the call without a stream returns."""
    whole = client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=8, logprobs=True)
    with client.chat.completions.stream(
        **GREEDY, messages=MESSAGES, max_tokens=8, logprobs=True, stream_options=USAGE
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} == kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert [entry.token for entry in final.choices[0].logprobs.content] == [
        entry.token for entry in whole.choices[0].logprobs.content
    ]
    assert final.usage == whole.usage


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    """A greedy answer's tokens are the most probable ones, and their bytes spell the message."""
    answer = client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=6, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content

    assert len(entries) == answer.usage.completion_tokens == 6
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert [top.logprob for top in entry.top_logprobs] == sorted(t.logprob for t in entry.top_logprobs)[::-1]
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert len(entry.top_logprobs) == 3


def test_several_answers_to_a_chat(client: openai.OpenAI) -> None:
    """The n choices have seeds of their own, and are the same each time."""
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "n": 2, "seed": 5, "temperature": 1.5}
    first, second = (client.chat.completions.create(**ask) for _ in range(2))

    assert [choice.index for choice in first.choices] == [0, 1]
    assert first.choices[0].message != first.choices[1].message
    assert first.choices == second.choices


def test_messages_as_parts_and_as_the_sdks_own_objects(client: openai.OpenAI) -> None:
    """A list of text parts means their joined text; an answer can be sent back unchanged."""
    text = MESSAGES[0]["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]}]
    plain, split = (
        client.chat.completions.create(**GREEDY, messages=messages, max_tokens=12) for messages in (MESSAGES, parts)
    )
    again = client.chat.completions.create(
        **GREEDY,
        messages=[*MESSAGES, plain.choices[0].message, {"role": "user", "content": "And Italy?"}],
        max_tokens=2,
    )

    assert split.choices[0].message == plain.choices[0].message
    assert again.usage.prompt_tokens > plain.usage.total_tokens


# The extension


def test_half_of_the_neurons(client: openai.OpenAI) -> None:
    """extra_body carries the field; griffin and metrics are attributes of the answer."""
    half = {"sparsity": 0.5, "griffin": {"method": "griffin"}}
    answers = (
        client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=8, extra_body=half),
        client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=8, extra_body=half),
    )

    for answer in answers:
        assert (answer.griffin["sparsity"], answer.griffin["reason"]) == (0.5, "requested")
        assert (answer.griffin["neurons_kept"], answer.griffin["neurons_total"]) == (23_040, 46_080)
        assert answer.metrics["time_to_first_token_ms"] >= answer.metrics["prefill_time_ms"] > 0
    assert answers[0].griffin["expert_set"] != answers[1].griffin["expert_set"]


def test_sparsity_for_a_whole_client(client: openai.OpenAI) -> None:
    """A header or the model's name works if a client cannot add a field."""
    halved = client.with_options(default_headers={"x-griffin-sparsity": "0.5"})
    by_header = halved.completions.create(**GREEDY, prompt=PROMPT, max_tokens=4)
    by_name = client.completions.create(model=f"{MODEL}@sparsity=0.5", prompt=PROMPT, max_tokens=4, temperature=0)

    assert by_header.griffin["expert_set"] == by_name.griffin["expert_set"] is not None
    assert by_name.model == f"{MODEL}@sparsity=0.5"


def test_raw_response(client: openai.OpenAI) -> None:
    """Headers have the request id and the unknown keys."""
    raw = client.completions.with_raw_response.create(
        **GREEDY, prompt=PROMPT, max_tokens=2, extra_body={"sparcity": 0.5}, extra_headers={"x-request-id": "mine-1"}
    )
    unnamed = client.chat.completions.with_raw_response.create(**GREEDY, messages=MESSAGES, max_tokens=2)

    assert (raw.headers["x-request-id"], raw.headers["x-griffin-ignored"]) == ("mine-1", "sparcity")
    assert raw.parse()._request_id == "mine-1"
    assert len(unnamed.headers["x-request-id"]) == 32
    assert "x-griffin-ignored" not in unnamed.headers


def test_streaming_response(client: openai.OpenAI) -> None:
    """with_streaming_response reads the events as lines."""
    with client.completions.with_streaming_response.create(
        **GREEDY, prompt=PROMPT, max_tokens=2, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert [line[:6] for line in lines] == ["data: "] * 3
    assert lines[-1] == "data: [DONE]"


# Models


def test_models(client: openai.OpenAI) -> None:
    """The model and its aliases are listed; any alias can be retrieved."""
    listed = [model.id for model in client.models.list()]

    assert listed == [MODEL, *(f"{MODEL}@sparsity={sparsity}" for sparsity in (0.25, 0.5, 0.75))]
    assert [client.models.retrieve(name).id for name in listed] == listed
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"


# asyncio


def test_async_client(client: openai.OpenAI, url: str) -> None:
    """AsyncOpenAI gives the same texts, with several requests at once."""

    async def ask() -> tuple[str, str, str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def streamed_text() -> str:
                chunks = await client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=8, stream=True)
                return "".join([chunk.choices[0].text async for chunk in chunks])

            async def streamed_chat() -> str:
                chunks = await client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=8, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            async def text() -> str:
                answer = await client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=8)
                return answer.choices[0].text

            async def chat() -> str:
                answer = await client.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=8)
                return answer.choices[0].message.content or ""

            return await asyncio.gather(streamed_text(), text(), streamed_chat(), chat())

    streamed_text, text, streamed_chat, chat = asyncio.run(ask())

    assert streamed_text == text == client.completions.create(**GREEDY, prompt=PROMPT, max_tokens=8).choices[0].text
    assert streamed_chat == chat != ""


# OpenAI's types


def test_answers_are_what_openais_types_say(strict: openai.OpenAI) -> None:
    """No field of an answer is missing, misspelt or of another type."""
    text = strict.completions.create(
        **GREEDY, prompt=PROMPT, max_tokens=4, n=2, logprobs=2, extra_body={"sparsity": 0.5}
    )
    plain = strict.completions.create(**GREEDY, prompt=PROMPT, max_tokens=4)
    chat = strict.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2)
    bare = strict.chat.completions.create(**GREEDY, messages=MESSAGES, max_tokens=4)

    assert len(text.choices[0].logprobs.top_logprobs) == 4
    assert (plain.choices[0].logprobs, bare.choices[0].logprobs) == (None, None)
    assert len(chat.choices[0].logprobs.content) == 4
    assert strict.models.retrieve(MODEL) == next(iter(strict.models.list()))


def test_chat_chunks_are_what_openais_types_say(strict: openai.OpenAI) -> None:
    """Chunks with and without log-probabilities, and the usage chunk."""
    for logprobs in (False, True):
        chunks = strict.chat.completions.create(
            **GREEDY, messages=MESSAGES, max_tokens=3, logprobs=logprobs, stream=True, stream_options=USAGE
        )
        assert len(list(chunks)) >= 4


# Refusals


def test_bad_requests_name_the_field_and_are_not_repeated(url: str) -> None:
    """BadRequestError has OpenAI's attributes; the SDK sends such a request once."""
    sent: list[Any] = []
    transport = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=transport) as client:
        with pytest.raises(openai.BadRequestError, match="sparsity") as sparse:
            client.completions.create(**GREEDY, prompt=PROMPT, extra_body={"sparsity": 1})
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                **GREEDY, messages=MESSAGES, max_tokens=8192, extra_body={"min_tokens": 8192}
            )
        with pytest.raises(openai.BadRequestError, match="tools") as tools:
            client.chat.completions.create(**GREEDY, messages=MESSAGES, tools=[{"type": "web_search"}])  # type: ignore[list-item]  # no function
        with pytest.raises(openai.BadRequestError) as streamed:
            client.completions.create(**GREEDY, prompt="", stream=True)

    assert (sparse.value.param, sparse.value.type) == ("sparsity", "invalid_request_error")
    assert (long.value.param, long.value.code) == ("min_tokens", "context_length_exceeded")
    assert (tools.value.param, tools.value.code) == ("tools[0].type", "unsupported_parameter")
    assert streamed.value.param == "prompt"
    assert len(sent) == 4


def test_unknown_models_and_endpoints_are_not_found(client: openai.OpenAI) -> None:
    """An unknown model, and an endpoint that this server does not have."""
    with pytest.raises(openai.NotFoundError) as model:
        client.completions.create(model="gpt-4", prompt=PROMPT)
    with pytest.raises(openai.NotFoundError) as endpoint:
        client.embeddings.create(model=MODEL, input=PROMPT)

    assert (model.value.code, model.value.param) == ("model_not_found", "model")
    assert endpoint.value.type == "invalid_request_error"
    assert "/v1/embeddings" in endpoint.value.message


def test_a_request_that_takes_too_long_is_not_repeated(url: str) -> None:
    """The 504 says that another attempt would end the same way; a stream gets the error as an event."""
    ask: dict[str, Any] = {**GREEDY, "prompt": PROMPT, "max_tokens": 8000}
    extra = {"timeout": 0.5, "ignore_eos": True}
    sent: list[Any] = []
    transport = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=transport) as client:
        with pytest.raises(openai.InternalServerError) as whole:
            client.completions.create(**ask, extra_body=extra)
        with pytest.raises(openai.APIError) as streamed:
            list(client.completions.create(**ask, extra_body=extra, stream=True))

    assert (whole.value.status_code, whole.value.code) == (504, "request_timeout")
    assert streamed.value.code == "request_timeout"
    assert len(sent) == 2


# A server that takes one request at a time, from holders of a key


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    with running("--queue-size", "0", "--workers", "1", "--api-keys", f"first,{KEY}") as process:
        yield process.url


@contextmanager
def occupied(url: str) -> Iterator[None]:
    """A stream that keeps the only worker busy."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        stream = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
        )
        with stream:
            next(iter(stream))
            yield
    wait_until(lambda: metric(url, "griffin_num_requests_running") == 0)


def test_a_full_queue_is_a_rate_limit(narrow: str) -> None:
    """The SDK raises RateLimitError, with the seconds to wait in a header."""
    with occupied(narrow), openai.OpenAI(base_url=f"{narrow}/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as refusal:
            client.completions.create(model=MODEL, prompt=PROMPT)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    assert (refusal.value.code, refusal.value.type) == ("queue_full", "rate_limit_error")
    assert int(refusal.value.response.headers["retry-after"]) >= 1


def test_the_sdk_waits_for_a_full_queue(narrow: str) -> None:
    """With its default of two retries the SDK repeats a refused request until there is room."""
    refused = metric(narrow, "griffin_requests_rejected_total", reason="queue_full")
    with ThreadPoolExecutor() as pool, openai.OpenAI(base_url=f"{narrow}/v1", api_key=KEY) as client:
        with occupied(narrow):
            pending = pool.submit(client.completions.with_raw_response.create, model=MODEL, prompt=PROMPT, max_tokens=2)
            wait_until(lambda: metric(narrow, "griffin_requests_rejected_total", reason="queue_full") > refused)
        answer = pending.result()

    assert client.max_retries == 2
    assert 1 <= answer.retries_taken <= 2
    assert answer.parse().usage.completion_tokens == 2


def test_keys(narrow: str) -> None:
    """Without a valid key the SDK raises AuthenticationError; each of the server's keys works."""
    with openai.OpenAI(base_url=f"{narrow}/v1", api_key="third") as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        models = [client.with_options(api_key=key).models.retrieve(MODEL).id for key in ("first", KEY)]

    assert (refusal.value.code, refusal.value.type) == ("invalid_api_key", "authentication_error")
    assert models == [MODEL, MODEL]
