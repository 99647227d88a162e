"""Two replicas of deploy.ray.app:application and their proxy, as clients see them, also when one replica is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.deploy.ray_cluster import REPLICA, ROOT, RayCluster, free_port, running, value, wait_until
from tests.server import tiny_checkpoint
from tests.server.scripted import leave_when

SCALING = ROOT / "docs/scaling.md"
# Requests that one replica holds, running or waiting, as serve.yaml says.
HELD = 2
QUEUED = 8
# Such an answer takes a second or two, which leaves time to act on it.
LONG = 1_000
ENDLESS = 60_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    model = tiny_checkpoint.write(tmp_path_factory.mktemp("tiny"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**16}))
    folder: Path = tmp_path_factory.mktemp("cluster")
    # On a busy machine, two long answers can take longer than serve.yaml lets a replica finish.
    patient = {"drain_timeout": 150}
    with running(folder, model, QUEUED, dtype="float32", metrics_port=free_port(), **patient) as cluster:
        yield cluster


def body(tokens: int, **fields: object) -> dict[str, object]:
    return {"prompt": "The quick brown fox", "max_tokens": tokens, "ignore_eos": True, **fields}


def complete(cluster: RayCluster, tokens: int, request_id: str = "") -> httpx.Response:
    headers = {"x-request-id": request_id} if request_id else {}
    return httpx.post(f"{cluster.url}/v1/completions", json=body(tokens), headers=headers, timeout=120)


def running_requests(cluster: RayCluster) -> float:
    return cluster.total("griffin_num_requests_running")


def test_load_goes_to_both_and_ids_are_kept(cluster: RayCluster) -> None:
    """An answer names its replica and has the client's id once, as do that replica's log lines."""
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda n: complete(cluster, 50, f"load-{n}"), range(16)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers[REPLICA] for answer in answers}) == 2
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [[f"load-{n}"] for n in range(16)]
    wait_until(lambda: all(f'"request_id": "load-{n}"' in cluster.log for n in range(16)), "all ids are logged")


def test_an_id_is_made_up_once(cluster: RayCluster) -> None:
    """Without a client's id, the answer and the log have Ray's."""
    answer = complete(cluster, 1)

    (request_id,) = answer.headers.get_list("x-request-id")
    wait_until(lambda: f'"request_id": "{request_id}"' in cluster.log, "it is logged")


def test_metrics_are_each_replicas_own(cluster: RayCluster) -> None:
    """The proxy has none, because each request would get another replica's."""
    answer = httpx.get(f"{cluster.url}/metrics")

    assert answer.status_code == 404
    assert "on its own port" in answer.json()["error"]["message"]
    assert cluster.log.count("metrics are at http://") == 2
    assert len(cluster.metrics()) == 2
    assert cluster.total("griffin_ready") == 2


def test_a_stream_arrives_token_by_token(cluster: RayCluster) -> None:
    """The proxy does not buffer: the first chunk arrives while the answer is still generated."""
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body(ENDLESS, stream=True), timeout=120) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        assert running_requests(cluster) == 1
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body(LONG, stream=True), timeout=120) as answer:
        whole = [line for line in answer.iter_lines() if line]

    assert first.startswith("data: {")
    assert whole[-1] == "data: [DONE]"
    assert len(whole) > LONG / 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(cluster: RayCluster, stream: bool) -> None:
    """The worker is free long before the answer would have ended, although a proxy stands between."""
    left = cluster.total("griffin_client_disconnects_total")
    leave_when(lambda: running_requests(cluster) == 1, cluster.url, **body(ENDLESS, stream=stream))

    wait_until(lambda: running_requests(cluster) == 0, "no worker is busy")
    wait_until(lambda: cluster.total("griffin_client_disconnects_total") == left + 1, "it is counted")


def test_requests_beyond_the_queue_are_refused_at_once(cluster: RayCluster) -> None:
    """Requests that may wait at the proxy are answered; others get a 429 with the time to wait."""
    count = 2 * (2 * HELD + QUEUED)
    with ThreadPoolExecutor(count) as clients:
        answers = list(clients.map(lambda n: complete(cluster, LONG // 4), range(count)))
    refused = [answer for answer in answers if answer.status_code != 200]

    assert 0 < len(refused) <= count - QUEUED
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "1")}


def test_a_killed_replica_takes_only_its_own_requests_with_it(cluster: RayCluster) -> None:
    """Its requests fail cleanly, all others are answered, also waiting ones, and a new replica starts."""
    known, count = cluster.replicas(16), 2 * HELD + 4

    def outcome(_: int) -> int:
        try:
            return complete(cluster, LONG).status_code
        except httpx.TransportError:
            return 0

    with ThreadPoolExecutor(count) as clients:
        answers = [clients.submit(outcome, n) for n in range(count)]
        wait_until(lambda: sum(map(in_flight, cluster.metrics().values())) == 2 * HELD, "both are full")
        victim, exposition = max(cluster.metrics().items(), key=lambda found: in_flight(found[1]))
        os.kill(victim, signal.SIGKILL)
        statuses = [answer.result() for answer in answers]
    afterwards = [complete(cluster, 5).status_code for _ in range(10)]

    failed = [status for status in statuses if status != 200]
    assert 0 < len(failed) <= in_flight(exposition)
    assert set(failed) <= {0, 500, 503}
    assert set(afterwards) == {200}
    wait_until(lambda: len(cluster.metrics()) == 2 and len(cluster.replicas() - known) == 1, "a new replica answers")


def in_flight(exposition: str) -> float:
    return value(exposition, "griffin_num_requests_running") + value(exposition, "griffin_num_requests_waiting")


def test_no_request_is_lost_when_a_replica_is_removed(cluster: RayCluster) -> None:
    """Under load, a replica that is removed answers what it has accepted and gets no more requests."""
    gone = threading.Event()

    def ask_on() -> set[str]:
        """What went wrong."""
        faults = set()
        while not gone.is_set():
            answer = complete(cluster, LONG)
            if answer.status_code != 200:
                faults.add(answer.text)
        return faults

    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(ask_on) for _ in range(4)]
        try:
            wait_until(lambda: running_requests(cluster) == 2, "both work")
            cluster.scale |= {"min_replicas": 1, "max_replicas": 1}
            cluster.deploy()
            wait_until(lambda: len(cluster.metrics()) == 1, "one replica is left", 200)
        finally:
            gone.set()

    assert [answer.result() for answer in answers] == [set()] * 4
    assert len(cluster.replicas()) == 1


BUILD = """
import json, sys
import click
from deploy.ray.app import application

for arguments in json.loads(sys.argv[1]):
    try:
        application(arguments)
        print("built")
    except click.UsageError as error:
        print(error.message)
"""


def documented_arguments() -> dict[str, str]:
    """The arguments of the command in docs/scaling.md, as ``serve run`` passes them."""
    (line,) = re.findall(r"^\$ serve run deploy.ray.app:application (.*)$", SCALING.read_text(), re.MULTILINE)
    return dict(argument.split("=") for argument in line.split())


def test_arguments() -> None:
    """The documented arguments build an application; an error names each wrong one and says what to do."""
    given = [
        documented_arguments(),
        {"api_keys": "secret"},
        {"port": "9000"},
        {"sparsty": "0.5"},
        {"min_replicas": "3", "max_replicas": "2"},
    ]
    # In another process, because Ray's imports warn, and warnings are errors here.
    command = [sys.executable, "-W", "ignore", "-c", BUILD, json.dumps(given)]
    outcomes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert outcomes[0] == "built"
    assert "GRIFFIN_API_KEYS" in outcomes[1]
    assert "secret" not in outcomes[1]
    assert "http_options.port" in outcomes[2]
    assert outcomes[3].startswith("sparsty:")
    assert outcomes[4].startswith("max_replicas: 2 is less than min_replicas")
