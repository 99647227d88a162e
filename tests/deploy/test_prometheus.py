"""A real Prometheus scrapes a real server under a short load: rules, alerts and dashboards give right values."""

import itertools
import json
import math
import re
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from griffin.request import MODES
from server import errors
from server.metrics import FAILURES, ITL_BUCKETS, REJECTIONS, REQUEST_BUCKETS, TTFT_BUCKETS
from tests.deploy.dashboards import annotation_queries, panel_queries
from tests.deploy.prometheus import CONFIGURATION, Prometheus, scraping
from tests.programs import require
from tests.server.process import ServerProcess, running

ROOT = Path(__file__).parents[2]
SPARSITIES = ("0", "0.25", "0.5", "0.75", "0.3")
# The sparsity without a label of its own.
OTHER = "0.3"
# Alerts whose condition may hold for a moment here; they fire only after minutes.
RAISED_BY_LOAD = {"GriffinQueueFull", "GriffinInterTokenLatencyHigh"}
# The names are those of the load test.
LATENCIES = {
    "ttft_ms": ("griffin_time_to_first_token_seconds", TTFT_BUCKETS),
    "itl_ms": ("griffin_inter_token_latency_seconds", ITL_BUCKETS),
    "e2e_ms": ("griffin_e2e_request_latency_seconds", REQUEST_BUCKETS),
}
# Requests for each sparsity, and tokens of each answer.
REQUESTS = 3
TOKENS = 40
PROMPT = (
    "A lighthouse keeper writes in his diary every evening. He notes the wind, the ships that passed, and what he had "
    "for supper. On the tenth of March, he writes that"
)


@dataclass
class Observed:
    """A server under load, and the Prometheus that scraped it. Times are seconds since the epoch.

    load: the load test's results by sparsity.
    started, quiet: the load test ran between them, and Prometheus has all its requests.
    ended: Prometheus has all other requests, too.
    """

    server: ServerProcess
    prometheus: Prometheus
    load: dict[str, Any]
    started: float
    quiet: float
    ended: float


def measured(url: str) -> dict[str, Any]:
    """The load test's results for one user's requests, by sparsity."""
    command = [
        sys.executable, "-m", "loadtest", "--url", url, "--concurrency", "1", "--warmup", "0",
        "--requests", str(REQUESTS), "--sparsities", *SPARSITIES, "--max-tokens", str(TOKENS), "--prompt-tokens", "48",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])["by_sparsity"]
    assert all(results[sparsity]["answered"] == REQUESTS for sparsity in SPARSITIES), results
    return dict(results)


@contextmanager
def endless_answer(url: str) -> Iterator[None]:
    """A stream that has begun and runs until its client leaves."""
    body = {"prompt": PROMPT, "sparsity": 0.5, "max_tokens": 5000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as response:
        # Keep a reference, because the connection ends with it.
        lines = response.iter_lines()
        next(lines)
        yield


def provoke(client: httpx.Client) -> int:
    """Send other requests: other modes and forms, an error, a client that leaves, and too many at once.

    Returns:
        The number of answered requests.
    """
    body = {"prompt": PROMPT, "max_tokens": 8, "sparsity": 0.5}
    modes = [{**body, "griffin": {"mode": mode}} for mode in MODES]
    chat = {"messages": [{"role": "user", "content": "What is a lighthouse?"}], "max_tokens": 8}
    statuses = [client.post("/v1/completions", json=body).status_code]
    statuses += [client.post("/v1/completions", json=verified).status_code for verified in modes]
    statuses.append(client.post("/v1/chat/completions", json=chat).status_code)
    statuses.append(client.post("/v1/completions", json={**body, "sparsity": 2}).status_code)
    with endless_answer(str(client.base_url).rstrip("/")):
        pass
    crowd = {**body, "max_tokens": 60, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        statuses += pool.map(lambda _: client.post("/v1/completions", json=crowd).status_code, range(6))
    assert set(statuses) == {200, 400, 429}
    return statuses.count(200)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """One server for all tests, because they ask about past times."""
    require("prometheus")
    arguments = (
        "--device", "cpu", "--workers", "2", "--queue-size", "1", "--prefill-chunk", "16", "--shadow-share", "1",
        # No drafts: a pass over drafts reads less for each token than an answer's report says.
        "--draft", "none",
    )  # fmt: skip
    with running(*arguments, OMP_NUM_THREADS="1") as server:
        target = server.url.removeprefix("http://")
        with (
            scraping(target, tmp_path_factory.mktemp("prometheus")) as prometheus,
            httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
        ):
            # Each series starts at zero before its first event.
            prometheus.wait_for('griffin_generation_tokens_total{sparsity="other"} == 0')
            started = time.time()
            load = measured(server.url)
            count = REQUESTS * len(SPARSITIES)
            prometheus.wait_for(f"sum(griffin_request_success_total) == {count}")
            quiet = time.time()
            count += provoke(client)
            prometheus.wait_for("sum(griffin_client_disconnects_total) == 1")
            prometheus.wait_for(f"sum(griffin_request_success_total) == {count}")
            prometheus.wait_for("model_sparsity:griffin_inter_token_latency_seconds:p99_5m_median_1w")
            prometheus.wait_for('griffin_shadow_requests_total{outcome="compared"} > 0')
            prometheus.wait_for("model_sparsity:griffin_shadow_top1_agreement_ratio:p50_30m >= 0")
            yield Observed(server, prometheus, load, started, quiet, time.time())


def test_configuration_and_rules_are_valid() -> None:
    """promtool accepts them without a warning."""
    checked = subprocess.run(
        [require("promtool"), "check", "config", "--lint-fatal", str(CONFIGURATION / "prometheus.yml")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire_when_they_should() -> None:
    """For each alert a test has a moment when it fires and one when it does not."""
    files = sorted(map(str, (CONFIGURATION / "tests").glob("*.yml")))
    tests = [test for file in files for test in yaml.safe_load(Path(file).read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    ran = subprocess.run([require("promtool"), "test", "rules", *files], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    names = {alert["alert"] for alert in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONFIGURATION / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_links_to_the_runbook() -> None:
    """Each alert has a section there, and the runbook has no other sections."""
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
    assert headings == [alert["alert"] for alert in alerts()]


def test_series_that_begin_at_zero_have_real_names() -> None:
    """A reason that no error has would stay at zero for ever."""
    kinds = [errors.ApiError]
    for kind in kinds:
        kinds += kind.__subclasses__()

    assert {*FAILURES, *REJECTIONS} <= {kind.code for kind in kinds}


@pytest.mark.parametrize("chosen", [False, True], ids=["all", "one"])
def test_every_panel_has_data(observed: Observed, chosen: bool) -> None:
    """Once with all models and instances, once with one of each."""
    variables: dict[str, list[str]] = {"model": [], "instance": []}
    if chosen:
        (ready,) = observed.prometheus.now("griffin_workers", observed.ended)
        variables = {"model": [ready["metric"]["model_name"]], "instance": [ready["metric"]["instance"]]}
    empty = []
    for query in panel_queries():
        text = query.filled("5s", "10m", **variables)
        if query.instant:
            values = [sample["value"] for sample in observed.prometheus.now(text, observed.ended)]
        else:
            series = observed.prometheus.over(text, observed.started, observed.ended)
            values = [value for each in series for value in each["values"]]
        if not any(math.isfinite(float(value)) for _, value in values):
            empty.append(query.where)

    assert empty == []


def test_annotations_evaluate(observed: Observed) -> None:
    """There may be alerts or none, and there is one start of the server."""
    found = {
        query.where: observed.prometheus.over(query.filled("5s", "10m", instance=[]), observed.started, observed.ended)
        for query in annotation_queries()
    }

    assert all(found[where] for where in found if where.endswith("Server starts")), found


def test_every_rule_evaluates(observed: Observed) -> None:
    """Recording rules have data for each sparsity, and alerts do not fire while all is well."""
    rules = observed.prometheus.rules()
    files = [yaml.safe_load(file.read_text()) for file in (CONFIGURATION / "rules").glob("*.yml")]

    assert len(rules) == sum(len(group["rules"]) for file in files for group in file["groups"])
    for rule in rules:
        assert rule["health"] == "ok", rule
        result = observed.prometheus.now(rule["query"], observed.ended)
        if rule["type"] == "recording":
            # The full model is not compared with itself.
            expected = {"0.25", "0.5", "0.75", "other"} | (set() if "shadow" in rule["name"] else {"0"})
            assert {sample["metric"]["sparsity"] for sample in result} == expected
        elif rule["name"] not in RAISED_BY_LOAD:
            assert result == [], rule["name"]


def label(sparsity: str) -> str:
    return "other" if sparsity == OTHER else sparsity


def disagreements(
    prometheus: Prometheus, load: dict[str, Any], seconds: float, end: float
) -> dict[tuple[str, str, int], str]:
    """The quantiles of a load that differ by more than one bucket between Prometheus and the load test.

    Returns:
        What each of them shows, by sparsity, name and percent.
    """
    found = {}
    for sparsity, (name, (metric, buckets)), percent in itertools.product(SPARSITIES, LATENCIES.items(), (50, 95, 99)):
        # Two seconds more, so that the range has a sample from before the load.
        increase = f'increase({metric}_bucket{{sparsity="{label(sparsity)}"}}[{seconds + 2:.0f}s])'
        (sample,) = prometheus.now(f"histogram_quantile({percent / 100}, {increase})", end)
        shown, felt = float(sample["value"][1]), load[sparsity][name][f"p{percent}"] / 1e3
        if abs(bisect_left(buckets, shown) - bisect_left(buckets, felt)) > 1:
            found[sparsity, name, percent] = f"Prometheus {shown:.4f} s, load test {felt:.4f} s"
    return found


def test_quantiles_are_those_of_the_load_test(observed: Observed) -> None:
    """The dashboards' figures differ from a client's by at most one bucket, at each sparsity.

    Each quantile has to agree in one of six loads.
    """
    prometheus, load, start, end = observed.prometheus, observed.load, observed.started, observed.quiet
    for sparsity, (name, (metric, _)) in itertools.product(SPARSITIES, LATENCIES.items()):
        (counted,) = prometheus.now(f'{metric}_count{{sparsity="{label(sparsity)}"}}', end)
        row = load[sparsity]
        # Tokens without text have no chunk: half a character, a special token.
        expected = row["tokens"] - row["answered"] if name == "itl_ms" else row[name]["count"]
        assert float(counted["value"][1]) == expected

    # On a busy machine the client also measures its own wait for the processor. So each quantile has to agree once.
    found = disagreements(prometheus, load, end - start, end)
    for _ in range(5):
        if not found:
            break
        (before,) = prometheus.now("sum(griffin_request_success_total)")
        start, load = time.time(), measured(observed.server.url)
        answered = float(before["value"][1]) + REQUESTS * len(SPARSITIES)
        prometheus.wait_for(f"sum(griffin_request_success_total) == {answered}")
        end = time.time()
        again = disagreements(prometheus, load, end - start, end)
        found = {quantile: text for quantile, text in again.items() if quantile in found}
    assert found == {}


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(
    ("counter", "field"),
    [
        ("griffin_decode_parameters_read_total", "active_parameters"),
        ("griffin_decode_bytes_read_total", "bytes_per_token"),
    ],
)
def test_what_a_token_reads_is_what_the_answers_say(
    observed: Observed, sparsity: str, counter: str, field: str
) -> None:
    """Panels divide the parameters or bytes read by the tokens after the first.

    With griffin+ the counters move every few tokens, so answers differ a little.
    """
    (read,) = observed.prometheus.now(
        f'{counter}{{sparsity="{label(sparsity)}"}}'
        f' / griffin_inter_token_latency_seconds_count{{sparsity="{label(sparsity)}"}}',
        observed.quiet,
    )

    assert float(read["value"][1]) == pytest.approx(observed.load[sparsity]["griffin"][field], rel=0.02)


def test_tokens_count_as_they_are_made(observed: Observed) -> None:
    """If they counted at the end of a long answer, a rate would be zero for minutes and then jump."""
    (before,) = observed.prometheus.now("sum(griffin_generation_tokens_total)", observed.ended)
    with endless_answer(observed.server.url):
        observed.prometheus.wait_for(
            f"sum(griffin_generation_tokens_total) > {float(before['value'][1]) + 20}"
            " and sum(griffin_num_requests_running) == 1"
        )


def test_a_drain_is_seen(observed: Observed) -> None:
    """A draining server is scraped and says that it is not ready. This test ends the server, so it is the last."""
    with endless_answer(observed.server.url):
        observed.server.process.terminate()
        observed.prometheus.wait_for("griffin_draining_seconds > 0 and griffin_ready == 0")
        observed.prometheus.wait_for("griffin_draining_seconds < griffin_drain_timeout_seconds")

    assert observed.server.wait() == 0
