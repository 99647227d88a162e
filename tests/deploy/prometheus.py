"""A real Prometheus with the configuration of deploy/prometheus that scrapes a test's server."""

import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import httpx
import yaml

from tests.programs import require

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "prometheus"
START_S = 120
# Between two scrapes and two evaluations; a test cannot wait for minutes.
INTERVAL_S = 1


class Prometheus:
    """A client of Prometheus' HTTP API. Times are seconds since the epoch."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=START_S, trust_env=False)

    def now(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples of an instant query. AssertionError if Prometheus refuses it."""
        parameters = {"query": expression, **({} if at is None else {"time": at})}
        return self._result("/query", parameters, "value")

    def over(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """The series of a range query, one point a second. The last one is at ``end``, so the latest change is seen."""
        begin = end - math.ceil(end - start)
        return self._result("/query_range", {"query": expression, "start": begin, "end": end, "step": 1}, "values")

    def wait_for(self, expression: str, timeout_s: float = START_S) -> None:
        """Wait until an instant query returns a sample. A comparison in a query drops samples for which it is false."""
        wait_until(lambda: bool(self.now(expression)), timeout_s, expression)

    def rules(self) -> list[dict[str, Any]]:
        groups = self._client.get("/rules").raise_for_status().json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def close(self) -> None:
        self._client.close()

    def _result(self, path: str, parameters: dict[str, Any], key: str) -> list[dict[str, Any]]:
        answer = self._client.post(path, data=parameters).json()
        assert answer["status"] == "success", f"{parameters['query']}: {answer}"
        result = answer["data"]["result"]
        assert all(key in series for series in result), answer
        return list(result)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus until the test ends, with its files in ``folder``. ``target``: host and port of a server."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                require("prometheus"), f"--config.file={_pointed_at(target, folder)}",
                f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}",
            ],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    prometheus = Prometheus(f"http://{address}")
    try:
        wait_until(lambda: process.poll() is not None or _answers(address), START_S, f"ready, see {log}")
        assert process.poll() is None, log.read_text()
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(START_S)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _pointed_at(target: str, folder: Path) -> Path:
    """The configuration with another target and INTERVAL_S for scrapes and evaluations."""
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], f"{INTERVAL_S}s")
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "rules").mkdir()
    for file in (CONFIGURATION / "rules").glob("*.yml"):
        rules = yaml.safe_load(file.read_text())
        for group in rules["groups"]:
            group["interval"] = f"{INTERVAL_S}s"
        (folder / "rules" / file.name).write_text(yaml.safe_dump(rules))
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(configuration))
    return written
