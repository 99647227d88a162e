"""A real process with the real default model and OpenAI's client."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.server.client import metric
from tests.server.process import ServerProcess, running
from tests.server.scripted import leave_when, wait_until

MODEL = "SmolLM2-135M-Instruct"
PROMPT = (
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water. "
    "In short, plants need sunlight because"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running("--queue-size", "4") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def running_requests(url: str) -> float:
    return metric(url, "griffin_num_requests_running")


def test_half_of_the_weights(client: openai.OpenAI) -> None:
    """By default (griffin+) about as many parameters are read as planned, and no neuron is removed."""
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, extra_body={"sparsity": 0.5})
    report = answer.griffin

    planned = client.models.retrieve(f"{MODEL}@sparsity=0.5")
    assert report["active_parameters"] == pytest.approx(planned.parameters["active"], rel=0.05)
    assert report["bytes_per_token"] == pytest.approx(planned.bytes_per_token["active"], rel=0.05)
    assert (report["method"], report["neurons_kept"], report["neurons_total"]) == ("griffin+", 46_080, 46_080)
    assert sum(report["shares_read"].values()) / 3 == pytest.approx(0.5, abs=0.05)


def test_half_of_the_neurons(client: openai.OpenAI) -> None:
    """With method griffin at 0.5 SmolLM2 uses 94,701,888 of its 134,515,008 parameters, as the report says."""
    half = {"sparsity": 0.5, "griffin": {"method": "griffin"}}
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, extra_body=half)
    report = answer.griffin

    assert (report["active_parameters"], report["total_parameters"]) == (94_701_888, 134_515_008)
    read = client.models.retrieve(f"{MODEL}@sparsity=0.5").bytes_per_token
    assert report["bytes_per_token"] == read["total"] - read["feed_forward"] / 2
    assert (report["sparsity"], report["reason"]) == (0.5, "requested")
    assert (report["neurons_kept"], report["neurons_total"]) == (23_040, 46_080)
    assert len(report["expert_set"]) == 16
    assert answer.usage.completion_tokens == 8
    assert answer.metrics["tokens_per_second"] > 0


def test_the_name_of_a_set_is_the_hash_of_its_neurons(server: ServerProcess) -> None:
    """The indices are sorted, their number is the report's, and the set's name is their hash."""
    body = {"prompt": PROMPT, "max_tokens": 2, "sparsity": 0.75, "griffin": {"method": "griffin"}}
    report = httpx.post(f"{server.url}/v1/completions", json=body)
    griffin = report.json()["griffin"]
    answer = httpx.get(f"{server.url}/v1/griffin/experts/{griffin['expert_set']}").json()
    kept = torch.tensor(answer["kept"], dtype=torch.int32)

    assert kept.shape == (30, 384)
    assert kept.numel() == griffin["neurons_kept"]
    assert bool((kept.diff(dim=1) > 0).all())
    assert int(kept.min()) >= 0
    assert int(kept.max()) < answer["neurons_per_layer"] == 1536
    assert hashlib.sha256(kept.numpy().tobytes()).hexdigest()[:16] == griffin["expert_set"]


@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_stream_and_object_give_the_same_text(client: openai.OpenAI, sparsity: float) -> None:
    """One seed gives one text, streamed or not, with one chunk for each token."""
    ask: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 24, "seed": 7, "temperature": 0.8, "top_p": 0.9,
        "extra_body": {"sparsity": sparsity, "ignore_eos": True},
    }  # fmt: skip
    answer = client.completions.create(**ask)
    *chunks, last = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})

    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert len(chunks) == 24
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage == answer.usage
    assert last.griffin["expert_set"] == answer.griffin["expert_set"]


def test_prompt_as_ids_is_the_prompt_as_text(client: openai.OpenAI, smollm2: Any) -> None:
    """Token ids are used as they are."""
    ids = smollm2.tokenizer(PROMPT).input_ids
    answers = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0) for prompt in (PROMPT, ids)
    ]

    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert answers[0].usage == answers[1].usage


def test_model_list(client: openai.OpenAI) -> None:
    """The list has the served model, its context and its aliases."""
    model, *aliases = client.models.list().data

    assert (model.id, model.max_model_len, model.parameters["total"]) == (MODEL, 8192, 134_515_008)
    assert [alias.id for alias in aliases] == [f"{MODEL}@sparsity={s}" for s in ("0.25", "0.5", "0.75")]
    assert aliases[1].parameters["active"] == 94_701_888
    assert client.models.retrieve(f"{MODEL}@sparsity=0.1").sparsity == 0.1


def test_a_disconnected_request_stops_within_a_token(server: ServerProcess) -> None:
    """The worker is free long before 4,000 tokens, streaming or not, and the log says "cancelled".

    Tests with scripted engines count the tokens: one at most.
    """
    for streaming in (True, False):
        body = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "stream": streaming}
        leave_when(lambda: running_requests(server.url) == 1, server.url, **body)
        wait_until(lambda: running_requests(server.url) == 0)
    wait_until(lambda: server.log.count("outcome=cancelled") == 2)


BAD: list[tuple[object, int, str | None]] = [
    ({"prompt": "a", "sparsity": 1}, 400, "sparsity"),
    ({"prompt": "a", "sparsity": float("nan")}, 400, "sparsity"),
    ({"prompt": "a", "sparsity": -0.1}, 400, "sparsity"),
    ({"prompt": "a", "sparsity": "half"}, 400, "sparsity"),
    ({"prompt": "a", "sparsity": True}, 400, "sparsity"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": 7}, 400, "prompt"),
    ({"prompt": "half of \ud83d"}, 400, "prompt"),
    ({"prompt": "a", "stop": "\ud800"}, 400, "stop"),
    ({"prompt": "a", "griffin": {"\ud800": 1}}, 400, "griffin"),
    ({"prompt": [1, "two"]}, 400, "prompt"),
    ({"prompt": ["text", [1]], "stop": 5}, 400, "stop"),
    ({"prompt": ["text", ""]}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": [[[1]]]}, 400, "prompt"),
    ({"prompt": ["x"] * 33}, 400, "prompt"),
    ({"prompt": ["fits", [5] * 8192]}, 400, "prompt"),
    ({"prompt": [5, 49152]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [5] * 8192}, 400, "prompt"),
    ({"prompt": "word " * 9000}, 400, "prompt"),
    ({"prompt": "a", "min_tokens": 8192}, 400, "min_tokens"),
    ({"prompt": "a", "max_tokens": 10**4000, "min_tokens": 10**3999}, 400, "min_tokens"),
    ({"prompt": [10**4000]}, 400, "prompt"),
    ({"prompt": "word " * 250_000}, 400, "prompt"),
    ({"prompt": "word " * 10**6}, 413, None),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": "many"}, 400, "max_tokens"),
    ({"prompt": "a", "temperature": 3}, 400, "temperature"),
    ({"prompt": "a", "top_p": -0.1}, 400, "top_p"),
    ({"prompt": "a", "top_k": -2}, 400, "top_k"),
    ({"prompt": "a", "min_p": 2}, 400, "min_p"),
    ({"prompt": "a", "seed": "x"}, 400, "seed"),
    ({"prompt": "a", "stop": [""]}, 400, "stop"),
    ({"prompt": "a", "stop": ["x"] * 17}, 400, "stop"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"prompt": "a", "griffin": {"selection": "best"}}, 400, "griffin.selection"),
    ({"prompt": "a", "griffin": {"statistics": "flocking"}}, 400, "griffin.statistics"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "response_format": {"type": "json"}}, 400, "response_format.type"),
    ({"prompt": "a", "prompt_logprobs": 0}, 400, "prompt_logprobs"),
    ({"prompt": "a", "n": 0}, 400, "n"),
    ({"prompt": "a", "n": 129}, 400, "n"),
    ({"prompt": "a", "n": 3, "best_of": 2}, 400, "best_of"),
    ({"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of"),
    ({"prompt": "a", "logprobs": 21}, 400, "logprobs"),
    ({"prompt": "a", "logprobs": True}, 400, "logprobs"),
    ({"prompt": "a", "presence_penalty": 2.5}, 400, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": "x"}, 400, "frequency_penalty"),
    ({"prompt": "a", "repetition_penalty": 0}, 400, "repetition_penalty"),
    ({"prompt": "a", "logit_bias": {"foo": 1}}, 400, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, 400, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"49152": 1}}, 400, "logit_bias"),
    ({"prompt": "a", "logit_bias": [1]}, 400, "logit_bias"),
    ({"prompt": "a", "min_tokens": 5, "max_tokens": 4}, 400, "min_tokens"),
    ({"prompt": "a", "stop_token_ids": [-1]}, 400, "stop_token_ids"),
    ({"prompt": "a", "stop_token_ids": [49152]}, 400, "stop_token_ids"),
    ({"prompt": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
    ({"prompt": "a", "timeout": 0}, 400, "timeout"),
    ({"prompt": "a", "griffin": {"prompt_tokens": 1}}, 400, "griffin.prompt_tokens"),
    ({"prompt": "a b c", "echo": True, "logprobs": 0, "griffin": {"prompt_tokens": 9}}, 400, "griffin.prompt_tokens"),
    ({"prompt": "a", "model": "SmolLM2-135M-Instruct@sparsity=1"}, 400, "model"),
    ({"prompt": "a", "model": "SmolLM2-135M-Instruct@sparsity=0.5", "sparsity": 0.25}, 400, "sparsity"),
    ({"prompt": "a", "model": "gpt-4"}, 404, "model"),
    ({"prompt": "a", "model": "\ud800"}, 404, "model"),
    ({"prompt": "a", "max_completion_tokens": 2}, 400, "max_completion_tokens"),
    ({"sparsity": 0.5}, 400, "prompt"),
    (["no", "object"], 400, None),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_names_the_field(server: ServerProcess, body: object, status: int, param: str | None) -> None:
    """The error has OpenAI's form and a message that helps a person."""
    response = httpx.post(
        f"{server.url}/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = response.json()["error"]

    assert response.status_code == status, response.text
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert len(response.content) < 600
    assert param is None or param in error["message"] or param == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\ud800": 1, "prompt": "a"}',
        b'{"prompt":',
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000,
    ],
)
def test_broken_json(server: ServerProcess, body: bytes) -> None:
    """Any bytes get a 400 in the same form."""
    response = httpx.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_server_goes_on_after_all_that(client: openai.OpenAI) -> None:
    """The SDK raises its own errors for bad input, and the next request is answered."""
    with pytest.raises(openai.BadRequestError, match="sparsity") as refusal:
        client.completions.create(model=MODEL, prompt="a", extra_body={"sparsity": 2})
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")

    assert refusal.value.param == "sparsity"
    assert client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2).usage.completion_tokens == 2


def test_two_workers_answer_at_the_same_time_and_sigterm_drains() -> None:
    """Each request keeps its own neurons. On SIGTERM the server finishes them and exits with 0."""
    ask = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    with running("--workers", "2", "--dtype", "float32") as server, ThreadPoolExecutor() as pool:
        url = server.url

        def post(sparsity: float) -> Any:
            return httpx.post(f"{url}/v1/completions", json={**ask, "sparsity": sparsity}, timeout=60).json()

        alone = [post(sparsity) for sparsity in (0.5, 0.2)]
        together = [pool.submit(post, sparsity) for sparsity in (0.5, 0.2)]
        wait_until(lambda: running_requests(url) == 2)
        assert server.terminate() == 0

        for future, expected in zip(together, alone, strict=True):
            assert future.result()["choices"] == expected["choices"]
            assert future.result()["griffin"]["expert_set"] == expected["griffin"]["expert_set"]
    assert "Traceback" not in server.log


def test_a_server_that_drains_says_so() -> None:
    """Meanwhile it is not ready, a metric has the time so far, and new requests get a 503 with Retry-After."""
    body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True}
    with running() as server, ThreadPoolExecutor() as pool:
        url = server.url
        before = httpx.get(f"{url}/metrics").text
        last = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=60)
        wait_until(lambda: running_requests(url) == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        during = httpx.get(f"{url}/metrics").text
        unknown = httpx.get(f"{url}/v1/griffin/experts/0123456789abcdef")
        refused = httpx.post(f"{url}/v1/completions", json=body)

        assert server.wait() == 0

    assert "\ngriffin_ready 1.0\n" in before
    assert "\ngriffin_draining_seconds 0.0\n" in before
    assert "\ngriffin_ready 0.0\n" in during
    assert "\ngriffin_draining_seconds 0.0\n" not in during
    assert unknown.status_code == 404
    assert refused.json()["error"]["code"] == "server_draining"
    assert int(refused.headers["retry-after"]) > 0
    assert last.result().json()["usage"]["completion_tokens"] == 200


def test_a_second_signal_ends_a_drain() -> None:
    """The drain ends at once; a waiting request gets an error in OpenAI's form, and the exit code is 0."""
    body = {"prompt": PROMPT, "max_tokens": 8000, "ignore_eos": True}
    with running("--drain-timeout", "600") as server, ThreadPoolExecutor() as pool:
        url = server.url
        last = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=60)
        wait_until(lambda: running_requests(url) == 1)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        server.process.send_signal(signal.SIGINT)

        assert server.wait(60) == 0
    assert last.result().json()["error"]["code"] == "server_draining"
    assert "Traceback" not in server.log


def test_drain_has_an_end() -> None:
    """Requests that outlast the drain timeout get an error in OpenAI's form, and the exit code is still 0."""
    body = {"prompt": PROMPT, "max_tokens": 8000, "ignore_eos": True}
    with running("--drain-timeout", "1", "--workers", "2") as server, ThreadPoolExecutor() as pool:
        url = server.url
        answers = [
            pool.submit(httpx.post, f"{url}/v1/completions", json={**body, "stream": streaming}, timeout=60)
            for streaming in (False, True)
        ]
        wait_until(lambda: running_requests(url) == 2)
        assert server.terminate() == 0
        whole, streamed = (answer.result() for answer in answers)

    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "server_draining"
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert json.loads(streamed.text.split("\n\n")[-3].removeprefix("data: "))["error"]["code"] == "server_draining"
    assert "Traceback" not in server.log


@pytest.mark.parametrize("after_s", [0, 0.3, 1, 2])
def test_sigterm_during_the_start(after_s: float) -> None:
    """At any moment of the start it stops soon, with exit code 0 and without a crash."""
    with running() as server:
        wait_until(lambda: "loading" in server.log, 60)
        time.sleep(after_s)

        assert server.terminate() == 0
    assert "Traceback" not in server.log
    assert "terminate called" not in server.log


def test_a_port_in_use_is_one_clear_line(server: ServerProcess) -> None:
    """The line names the flag, and the exit code is 1."""
    port = server.url.rsplit(":", 1)[1]
    with running("--port", port) as second:
        assert second.wait() == 1
    assert "address already in use" in second.log
    assert "--port" in second.log
    assert "Traceback" not in second.log


def test_settings_at_their_extremes_start(server: ServerProcess) -> None:
    """A context of three tokens, no queue and a tiny temperature work."""
    with running("--max-model-len", "3", "--queue-size", "0") as small:
        answer = httpx.post(f"{small.url}/v1/completions", json={"prompt": [5], "max_tokens": 2, "temperature": 1e-50})

    assert answer.status_code == 200, answer.text


def test_start_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    """A folder without a model: one line, exit code 1, no traceback."""
    with running("--model", str(tmp_path)) as server:
        assert server.wait() == 1
    assert "is not a model directory: it has no config.json" in server.log
    assert "Traceback" not in server.log
    assert len(server.log.splitlines()) == 2


def test_start_with_an_unsupported_model_is_one_clear_line(tmp_path: Path) -> None:
    """The line lists the supported types."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with running("--model", str(tmp_path)) as server:
        assert server.wait() == 1
    assert "'mixtral' is not supported; supported are: llama, mistral" in server.log
    assert "Traceback" not in server.log


def test_the_printed_curl_line_works(server: ServerProcess) -> None:
    """A user can paste it into a shell."""
    server.url  # noqa: B018  # waits for the line
    line = next(line for line in server.log.splitlines() if line.startswith("curl "))
    answer = json.loads(subprocess.run(["sh", "-c", line + " -s"], capture_output=True, check=True).stdout)

    assert answer["choices"][0]["text"]
    assert answer["griffin"]["reason"] == "requested"
