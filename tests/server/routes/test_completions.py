"""/v1/completions over real HTTP, with scripted engines: the form of answers, streams, reports and errors."""

from typing import Any

import httpx
import pytest

from tests.server.client import metric, post, stream
from tests.server.scripted import ScriptedEngine, served, wait_until

# The part of a report that differs between methods.
PLUS: dict[str, Any] = {
    "method": "griffin+", "selection": None, "statistic": None, "neurons_kept": 200,
    "shares_read": {"gate": 0.6, "up": 0.5, "down": 0.25}, "active_parameters": 670, "bytes_per_token": 870,
}  # fmt: skip
PAPERS: dict[str, Any] = {
    "method": "griffin", "selection": "top_k", "statistic": "flocking", "neurons_kept": 100,
    "shares_read": {"gate": 0.5, "up": 0.5, "down": 0.5}, "active_parameters": 700, "bytes_per_token": 1000,
}  # fmt: skip


@pytest.mark.parametrize(("griffin", "of_method"), [(None, PLUS), ({"method": "griffin"}, PAPERS)])
def test_one_object(griffin: object, of_method: dict[str, Any]) -> None:
    """The answer has the form that OpenAI's clients expect, a report on pruning (by default griffin+) and times."""
    with served(ScriptedEngine()) as url:
        answer = post(url, max_tokens=4, sparsity=0.5, griffin=griffin).json()

    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "abcd", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["griffin"] == {
        "sparsity": 0.5, "requested_sparsity": 0.5, "reason": "requested", "auto": None,
        **of_method, "mode": "fast", "neurons_total": 200, "total_parameters": 1000, "prompt_tokens": 5,
        "selection_ms": 2.0,
        "expert_set": "cafe", "expert_sets": None, "verification": None, "comparison": None,
        "max_tokens": 4, "max_tokens_each": None,
    }  # fmt: skip
    assert set(answer["metrics"]) == {
        "time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "prefill_time_ms", "mean_itl_ms",
        "tokens_per_second",
    }  # fmt: skip
    assert all(value >= 0 for value in answer["metrics"].values())


def test_stream_has_one_chunk_for_each_token() -> None:
    """All have one id and time. The last text has the reason; then follow usage without choices and [DONE]."""
    with served(ScriptedEngine()) as url:
        events = stream(url, max_tokens=3, sparsity=0.5, stream_options={"include_usage": True})

    *chunks, usage = events
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {(event["id"], event["created"], event["object"], event["model"]) for event in events} == {
        (usage["id"], usage["created"], "text_completion", "scripted")
    }
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (usage["griffin"]["active_parameters"], usage["griffin"]["bytes_per_token"]) == (670, 870)
    assert usage["metrics"]["time_to_first_token_ms"] > 0


def test_bytes_of_a_token_in_report_and_metrics() -> None:
    """Those of the full model without pruning, of the kept neurons, or as counted for griffin+."""
    with served(ScriptedEngine()) as url:
        full = post(url, max_tokens=4, sparsity=0).json()["griffin"]
        last = metric(url, "griffin_bytes_per_token")
        two = post(url, prompt=["a", "b"], max_tokens=4, sparsity=0.5, griffin={"method": "griffin"}).json()["griffin"]
        plus = post(url, max_tokens=3, sparsity=0.5).json()["griffin"]
        series = {
            "all": metric(url, "griffin_model_bytes_per_token"),
            "last": metric(url, "griffin_bytes_per_token"),
            "full": metric(url, "griffin_decode_bytes_read_total", sparsity="0"),
            "half": metric(url, "griffin_decode_bytes_read_total", sparsity="0.5"),
        }

    assert [report["bytes_per_token"] for report in (full, two, plus)] == [1600, 1000, 870]
    assert last == 1600
    assert plus["shares_read"] == {"gate": 0.6, "up": 0.5, "down": 0.25}
    assert (plus["neurons_kept"], plus["active_parameters"]) == (200, 670)
    assert series == {"all": 1600, "last": 870, "full": 3 * 1600, "half": 2 * 3 * 1000 + 2 * 1000}


def test_stream_without_usage_says_nothing_of_it() -> None:
    """Chunks have no usage unless the request asks for it."""
    with served(ScriptedEngine()) as url:
        events = stream(url, max_tokens=2)

    assert len(events) == 2
    assert all("usage" not in event for event in events)


@pytest.mark.parametrize(
    ("stop", "text", "tokens"), [("e", "abcd", 5), (["fg", "zz"], "abcde", 7), ("jab", "abcdefghi", 12)]
)
def test_stop_strings_end_the_text(stop: object, text: str, tokens: int) -> None:
    """The text ends before the stop string, streamed or not, and the stop string's tokens are counted."""
    with served(ScriptedEngine()) as url:
        answer = post(url, max_tokens=50, stop=stop).json()
        events = stream(url, max_tokens=50, stop=stop, stream_options={"include_usage": True})
        wait_until(lambda: metric(url, "griffin_num_requests_running") == 0)

    assert answer["choices"][0]["text"] == text
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == tokens
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize(
    ("body", "sparsity", "reason"),
    [
        ({"sparsity": 0.5, "max_tokens": 1}, 0.0, "finished_at_first_token"),
        ({"sparsity": 0.001, "max_tokens": 1}, 0.0, "rounded_to_dense"),
        ({"sparsity": 0}, 0.0, "requested"),
        ({}, 0.25, "server_default"),
        ({"sparsity": None}, 0.25, "server_default"),
        ({"sparsity": 0.75}, 0.75, "requested"),
    ],
)
def test_the_report_is_what_was_applied(body: dict[str, Any], sparsity: float, reason: str) -> None:
    """The report says what was applied, not what was asked for."""
    with served(ScriptedEngine(), sparsity=0.25) as url:
        report = post(url, **body).json()["griffin"]

    assert (report["sparsity"], report["reason"]) == (sparsity, reason)
    assert report["requested_sparsity"] == body.get("sparsity")


def test_unknown_fields_are_listed_in_a_header() -> None:
    """A misspelt field is named to the client."""
    with served(ScriptedEngine()) as url:
        assert post(url, sparisty=0.5, user="me").headers["x-griffin-ignored"] == "sparisty"
        assert "x-griffin-ignored" not in post(url, n=1, logprobs=None, echo=False, logit_bias={}).headers


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("key", [" a", "zz ", "", "\t", "a,b", "na\u00efve", "\r\nx: y", "k" * 10_000])
def test_odd_keys_make_a_valid_header(key: str, streaming: bool) -> None:
    """Any characters may be in a key: the request is answered."""
    with served(ScriptedEngine()) as url:
        response = post(url, stream=streaming, **{key: 1})

        assert response.status_code == 200
        assert "x-griffin-ignored" in response.headers
        assert "x" not in response.headers
        assert metric(url, "griffin_request_success_total") == 1


def test_refusals_are_counted_by_reason() -> None:
    """Requests that are refused before the queue are in one counter, with the reason as a label."""
    with served(ScriptedEngine()) as url:
        for body in (
            {"sparsity": 2},
            {"suffix": "x"},
            {"model": "other"},
            {"min_tokens": 999},
            {"prompt": "a" * 200_000},
        ):
            assert post(url, **body).status_code in (400, 404)
        text = httpx.get(f"{url}/metrics").text

    for reason, count in (("invalid_value", 1), ("unsupported_parameter", 1), ("model_not_found", 1),
                          ("context_length_exceeded", 2)):  # fmt: skip
        assert f'griffin_requests_rejected_total{{reason="{reason}"}} {count}.0' in text


def test_inter_token_latency_has_millisecond_buckets() -> None:
    """A fast model's dense and pruned runs differ by milliseconds. Rare sparsities share the label "other"."""
    with served(ScriptedEngine()) as url:
        post(url, max_tokens=5, sparsity=0.123)
        text = httpx.get(f"{url}/metrics").text

    assert 'griffin_inter_token_latency_seconds_bucket{le="0.002",model_name="scripted",sparsity="other"}' in text
    assert 'griffin_inter_token_latency_seconds_count{model_name="scripted",sparsity="other"} 4.0' in text
    assert "griffin_decode_parameters_read_total" in text


def test_other_routes_and_methods_fail_in_the_same_form() -> None:
    """Answers with 404 and 405 have OpenAI's error object, too."""
    with served(ScriptedEngine()) as url:
        missing, wrong = httpx.get(f"{url}/v1/nothing"), httpx.get(f"{url}/v1/completions")

    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert missing.json()["error"]["message"] == "Not Found (GET /v1/nothing)"
    assert wrong.json()["error"]["message"] == "Method Not Allowed (GET /v1/completions); use POST"


def test_validation_replies_stay_small() -> None:
    """An error does not repeat a large body."""
    with served(ScriptedEngine()) as url:
        responses = [
            post(url, prompt=["x"] * 50_000),
            post(url, stop=list(range(50_000))),
            post(url, sparsity="9" * 10**6),
            post(url, griffin={f"k{number}": 1 for number in range(10**5)}),
            post(url, **{f"k{number}": 1 for number in range(10**5)}),
            post(url, stop_token_ids=["x"] * 10**5),
            post(url, stop="x" * 513),
            post(url, "/v1/chat/completions", messages=[{"role": "user", "content": [1] * 500_000}]),
            post(url, "/v1/chat/completions", messages=[{"role": "user", "content": [{}] * 10**5}]),
            post(url, "/v1/chat/completions", messages=[{}] * 10**5),
            post(url, "/detokenize", tokens=["x"] * 300_000),
            post(url, "/tokenize", messages=[1] * 10**5),
        ]

    for response in responses:
        assert response.status_code == 400
        assert len(response.content) < 600
