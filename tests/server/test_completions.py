"""The endpoint over real HTTP, with scripted engines: wire format, disconnects, overload, faults."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.service import Loaded
from server.settings import Settings
from tests.server.scripted import ScriptedEngine, leave_early, served, wait_until


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"prompt": "hello", **body}, timeout=20)


def stream(url: str, **body: Any) -> list[Any]:
    """All events of a stream, decoded; the last must be [DONE]."""
    response = post(url, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def test_one_object() -> None:
    """The shape OpenAI's clients expect, with what was applied and how long it took."""
    with served(ScriptedEngine()) as url:
        answer = post(url, max_tokens=4, sparsity=0.5).json()

    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "abcd", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert answer["griffin"] == {
        "sparsity": 0.5, "requested_sparsity": 0.5, "reason": "requested", "selection": "top_k",
        "statistic": "flocking", "neurons_kept": 100, "neurons_total": 200, "active_parameters": 700,
        "total_parameters": 1000, "prompt_tokens": 5, "selection_ms": 2.0, "expert_set": "cafe", "expert_sets": None,
    }  # fmt: skip
    assert set(answer["metrics"]) == {
        "time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "prefill_time_ms", "mean_itl_ms",
        "tokens_per_second",
    }  # fmt: skip
    assert all(value >= 0 for value in answer["metrics"].values())


def test_stream_has_one_chunk_for_each_token() -> None:
    """Same id and time in all; the last text comes with the reason; then usage without choices; then [DONE]."""
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
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert usage["griffin"]["active_parameters"] == 700
    assert usage["metrics"]["time_to_first_token_ms"] > 0


def test_stream_without_usage_says_nothing_of_it() -> None:
    """No usage chunk and no usage key unless asked for."""
    with served(ScriptedEngine()) as url:
        events = stream(url, max_tokens=2)

    assert len(events) == 2
    assert all("usage" not in event for event in events)


@pytest.mark.parametrize(
    ("stop", "text", "tokens"), [("e", "abcd", 5), (["fg", "zz"], "abcde", 7), ("jab", "abcdefghi", 12)]
)
def test_stop_strings_end_the_text(stop: object, text: str, tokens: int) -> None:
    """Trimmed before the stop string, in both forms, and the tokens up to it are counted."""
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
        ({"sparsity": 0}, 0.0, "requested"),
        ({}, 0.25, "server_default"),
        ({"sparsity": None}, 0.25, "server_default"),
        ({"sparsity": 0.75}, 0.75, "requested"),
    ],
)
def test_the_report_is_what_was_applied(body: dict[str, Any], sparsity: float, reason: str) -> None:
    """Never just what was asked for."""
    with served(ScriptedEngine(), sparsity=0.25) as url:
        report = post(url, **body).json()["griffin"]

    assert (report["sparsity"], report["reason"]) == (sparsity, reason)
    assert report["requested_sparsity"] == body.get("sparsity")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
def test_a_client_that_leaves_costs_at_most_a_token(streaming: bool, phase: str) -> None:
    """In each phase, streaming or not: the engine stops, the disconnect is counted, and the next is served."""
    gate = threading.Event()
    slow = ScriptedEngine(step_s=0.02, prefill_s=60 if phase == "prefill" else 0, gate=gate)
    with served(slow) as url:
        with ThreadPoolExecutor() as pool:
            if phase == "queue":
                pool.submit(post, url, max_tokens=1)
                wait_until(lambda: metric(url, "griffin_num_requests_running") == 1)
            else:
                gate.set()
            leave_early(url, 0.6, prompt="hello", max_tokens=900, stream=streaming)
            wait_until(lambda: metric(url, "griffin_client_disconnects_total") == 1)
            generated = slow.generated
            gate.set()
            wait_until(lambda: metric(url, "griffin_num_requests_running") == 0)
            counted = httpx.get(f"{url}/metrics").text
        assert f'griffin_client_disconnects_total{{model_name="scripted",phase="{phase}"}} 1.0' in counted
        assert slow.generated - generated <= (2 if phase == "queue" else 1)
        slow.prefill_s = 0
        assert post(url, max_tokens=2).status_code == 200

    assert max(slow.ended) < 200


def test_a_queue_of_no_places_serves_one_after_the_other() -> None:
    """An engine whose job was cut short by a stop string counts as free at once."""
    with served(ScriptedEngine(step_s=0.01), queue_size=0) as url:
        statuses = [post(url, max_tokens=50, stop="c").status_code for _ in range(20)]

    assert statuses == [200] * 20


def test_clients_that_leave_at_any_moment_are_all_accounted_for() -> None:
    """Before the first event, in the middle, at the end: accepted = finished + given up, and the worker is free."""
    random.seed(0)
    with served(ScriptedEngine(step_s=0.001), queue_size=100) as url:
        port = int(url.rsplit(":", 1)[1])
        for attempt in range(60):
            body = json.dumps({"prompt": "hello", "max_tokens": 30, "stream": attempt % 2 == 0}).encode()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                time.sleep(random.choice([0, 0.001, 0.005, 0.05]))

        def settled() -> bool:
            ended = metric(url, "griffin_request_success_total") + metric(url, "griffin_client_disconnects_total")
            return ended == metric(url, "griffin_requests_accepted_total") >= 30

        wait_until(lambda: settled() and metric(url, "griffin_num_requests_running") == 0)


def test_overload_is_refused_and_every_accepted_request_is_answered() -> None:
    """10 x the places: 429 in OpenAI's form with Retry-After, and the numbers add up."""
    gate = threading.Event()
    with served(ScriptedEngine(gate=gate), queue_size=3) as url:
        with ThreadPoolExecutor(40) as pool:
            answers = [pool.submit(post, url, max_tokens=2) for _ in range(40)]
            wait_until(lambda: sum(answer.done() for answer in answers) == 36)
            gate.set()
            responses = [answer.result() for answer in answers]
        refused = [response for response in responses if response.status_code == 429]

        assert sum(response.status_code == 200 for response in responses) == 4
        assert len(refused) == 36
        assert metric(url, "griffin_requests_accepted_total") == 4
        assert metric(url, "griffin_request_success_total") == 4
        assert metric(url, "griffin_requests_rejected_total") == 36
    for response in refused:
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 120


def test_a_fault_in_the_engine_is_a_500_without_internals() -> None:
    """OpenAI's form, no retry, nothing of the cause; and the server goes on."""
    with served(ScriptedEngine(fail_after=1)) as url:
        response = post(url, max_tokens=3)
        again = post(url, max_tokens=1)

        assert metric(url, "griffin_request_failure_total") == 1
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert again.status_code == 200


def test_a_fault_inside_a_stream_is_an_object_in_it() -> None:
    """Text so far is delivered, then an error the SDK can raise, then [DONE]."""
    with served(ScriptedEngine(fail_after=2)) as url:
        events = stream(url, max_tokens=5, stream_options={"include_usage": True})

    assert [event["choices"][0]["text"] for event in events[:-1]] == ["a", "b"]
    assert events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(events)


def test_before_the_model_is_there() -> None:
    """Alive but not ready; completions are told to come back."""
    release = threading.Event()

    def slow_loader(_: Settings) -> Loaded:
        release.wait(10)
        raise RuntimeError("never mind")

    with served(loader=slow_loader) as url:
        answers = [httpx.get(f"{url}/ready"), httpx.get(f"{url}/v1/models"), post(url)]

        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        release.set()
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_loading"
        assert int(answer.headers["retry-after"]) >= 1


def test_unknown_fields_are_listed_in_a_header() -> None:
    """A misspelt field does not go unseen."""
    with served(ScriptedEngine()) as url:
        assert post(url, sparisty=0.5, user="me").headers["x-griffin-ignored"] == "sparisty"
        assert "x-griffin-ignored" not in post(url, n=1, logprobs=None, echo=False, logit_bias={}).headers


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("key", [" a", "zz ", "", "\t", "a,b", "na\u00efve", "\r\nx: y", "k" * 10_000])
def test_odd_keys_make_a_valid_header(key: str, streaming: bool) -> None:
    """Whatever the key is made of, the request is answered."""
    with served(ScriptedEngine()) as url:
        response = post(url, stream=streaming, **{key: 1})

        assert response.status_code == 200
        assert "x-griffin-ignored" in response.headers
        assert "x" not in response.headers
        assert metric(url, "griffin_request_success_total") == 1


def test_a_fault_leaves_the_connection_usable() -> None:
    """The next request on the same connection is answered."""
    with served(ScriptedEngine(fail_after=1)) as url, httpx.Client() as client:
        for tokens, status in ((3, 500), (1, 200), (3, 500), (1, 200)):
            body = {"prompt": "hello", "max_tokens": tokens}
            assert client.post(f"{url}/v1/completions", json=body).status_code == status


def test_refusals_are_counted_by_reason() -> None:
    """What never reached the queue is in one counter, whatever the reason."""
    with served(ScriptedEngine()) as url:
        for body in (
            {"sparsity": 2},
            {"suffix": "x"},
            {"model": "other"},
            {"max_tokens": 999},
            {"prompt": "a" * 200_000},
        ):
            assert post(url, **body).status_code in (400, 404)
        text = httpx.get(f"{url}/metrics").text

    for reason, count in (("invalid_value", 1), ("unsupported_parameter", 1), ("model_not_found", 1),
                          ("context_length_exceeded", 2)):  # fmt: skip
        assert f'griffin_requests_rejected_total{{reason="{reason}"}} {count}.0' in text


def test_inter_token_latency_has_millisecond_buckets() -> None:
    """Dense and pruned runs of a fast model must not fall into one bucket; values are by a short list of labels."""
    with served(ScriptedEngine()) as url:
        post(url, max_tokens=5, sparsity=0.123)
        text = httpx.get(f"{url}/metrics").text

    assert 'griffin_inter_token_latency_seconds_bucket{le="0.002",model_name="scripted",sparsity="other"}' in text
    assert 'griffin_inter_token_latency_seconds_count{model_name="scripted",sparsity="other"} 4.0' in text
    assert "griffin_decode_parameters_read_total" in text


def test_other_routes_and_methods_fail_in_the_same_form() -> None:
    """404 and 405 are envelopes too."""
    with served(ScriptedEngine()) as url:
        missing, wrong = httpx.get(f"{url}/v1/nothing"), httpx.get(f"{url}/v1/completions")

    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


def test_validation_replies_stay_small() -> None:
    """A body full of errors is not sent back."""
    with served(ScriptedEngine()) as url:
        responses = [
            post(url, prompt=["x"] * 50_000),
            post(url, stop=list(range(50_000))),
            post(url, sparsity="9" * 10**6),
        ]

    for response in responses:
        assert response.status_code == 400
        assert len(response.content) < 600
