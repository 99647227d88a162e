"""Sparsity auto over HTTP: what the engine gets, what the answer and metrics say, and what is refused."""

import asyncio
import math
import time
from typing import Any

import pytest

from griffin import Pruning, Sampling
from griffin.method.auto import Outlook
from griffin.request import Auto
from server.commandline.reading import read_settings
from server.loader import Loaded
from server.service import Service
from server.settings import Settings
from server.work.job import Ask, Job
from tests.server.answer.generations import generation_of
from tests.server.client import metric, post, stream
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

FOUND = Outlook(0.25, math.log1p(0.03), math.log1p(0.05))


@pytest.mark.parametrize(
    "body",
    [{"sparsity": "auto"}, {"model": "scripted@sparsity=auto"}, {"sparsity": "auto", "griffin": {"method": "griffin"}}],
)
def test_auto_reaches_the_engine(body: dict[str, Any]) -> None:
    """The engine gets the server's tolerance and the token limit; the report has the sparsity that it found."""
    with served(engine := ScriptedEngine(outlook=FOUND), auto_tolerance=5) as url:
        report = post(url, max_tokens=7, **body).json()["griffin"]

    ((pruning, _),) = engine.asked
    assert pruning.auto is not None
    assert (pruning.auto.limit, pruning.auto.tokens) == (pytest.approx(math.log(1.05)), 7)
    assert (report["sparsity"], report["requested_sparsity"], report["reason"]) == (0.25, "auto", "auto")
    assert report["auto"] == {"sparsity": 0.25, "predicted_perplexity_percent": 3.0, "tolerance_percent": 5.0}


def test_a_header_asks_for_it() -> None:
    """The header works as the field does; two different values are refused."""
    with served(engine := ScriptedEngine(outlook=FOUND)) as url:
        header = {"X-Griffin-Sparsity": "auto"}
        assert post(url, max_tokens=2, headers=header).json()["griffin"]["requested_sparsity"] == "auto"
        refused = post(url, max_tokens=2, headers=header, sparsity=0.5)

    assert len(engine.asked) == 1
    assert refused.status_code == 400
    assert "different ones (sparsity: 0.5, x-griffin-sparsity: auto)" in refused.json()["error"]["message"]


def test_metrics_have_the_sparsity_that_was_found() -> None:
    """Metrics count under the sparsity that was found, which a stream's last report has, too."""
    with served(ScriptedEngine(outlook=FOUND)) as url:
        events = stream(url, max_tokens=5, sparsity="auto", stream_options={"include_usage": True})

        assert events[-1]["griffin"]["auto"]["sparsity"] == 0.25
        assert metric(url, "griffin_generation_tokens_total", sparsity="0.25") == 5
        assert metric(url, "griffin_generation_tokens_total", sparsity="0") == 0


def test_auto_may_find_sparsity_0() -> None:
    """The full model answers, and the report gives the reason."""
    with served(ScriptedEngine(outlook=Outlook(0.0, 0.0, 0.05))) as url:
        report = post(url, max_tokens=3, sparsity="auto").json()["griffin"]

    assert (report["sparsity"], report["reason"], report["expert_set"]) == (0, "auto", None)
    assert report["auto"]["sparsity"] == 0
    assert report["active_parameters"] == report["total_parameters"]


def test_the_servers_default() -> None:
    """It holds if a request gives no sparsity. Where auto cannot be found, the full model answers."""
    with served(engine := ScriptedEngine(outlook=FOUND), sparsity="auto") as url:
        reports = [
            post(url, max_tokens=3, **body).json()["griffin"]
            for body in ({}, {"sparsity": 0.5}, {"prompt": ["a", "b"]}, {"echo": True, "logprobs": 0})
        ]

    assert [pruning.auto is not None for pruning, _ in engine.asked] == [True, False, False, False, False]
    assert [(report["reason"], report["sparsity"]) for report in reports] == [
        ("auto", 0.25), ("requested", 0.5), ("server_default", 0), ("server_default", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "expected"),
    [
        ({"prompt": ["a", "b"]}, "sparsity", "auto is found for one prompt"),
        ({"echo": True, "logprobs": 0}, "sparsity", "auto is found for one prompt, which is not scored"),
        ({"griffin": {"statistic": "magnitude"}}, "griffin.statistic", "not with sparsity auto"),
        ({"griffin": {"selection": "sample"}}, "griffin.selection", "not with sparsity auto"),
        ({"griffin": {"mode": "lossless", "draft": "ngram"}}, "sparsity", "leave sparsity out"),
    ],
)
def test_fields_that_auto_excludes(body: dict[str, Any], param: str, expected: str) -> None:
    """The error names the field and says what to do."""
    with served(ScriptedEngine(outlook=FOUND)) as url:
        answer = post(url, max_tokens=2, sparsity="auto", **body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert expected in answer.json()["error"]["message"]


@pytest.mark.parametrize("wrong", ["most", 1.5])
def test_invalid_sparsities(wrong: object) -> None:
    """The refusal names the two forms of a sparsity: a number and 'auto'."""
    with served(ScriptedEngine()) as url:
        refused = post(url, max_tokens=2, sparsity=wrong)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "sparsity"
    assert f", or 'auto' (got {wrong!r})" in refused.json()["error"]["message"]


def test_auto_is_refused_with_an_expert_set() -> None:
    """An expert_set has its own sparsity."""
    with served(ScriptedEngine(outlook=FOUND)) as url:
        name = post(url, max_tokens=3, sparsity="auto").json()["griffin"]["expert_set"]
        own = post(url, max_tokens=3, griffin={"expert_set": name}).json()["griffin"]
        refused = post(url, max_tokens=3, sparsity="auto", griffin={"expert_set": name})

    assert (own["sparsity"], own["reason"], own["auto"]) == (0.25, "expert_set", None)
    assert refused.status_code == 400
    assert "not auto with expert_set" in refused.json()["error"]["message"]


def test_the_request_does_not_change() -> None:
    """The worker's thread reads the request's pruning, so only the prompt that was read has the sparsity found."""

    async def scenario() -> None:
        service = Service(Settings())
        service.models.room.serve(
            service.models.slots[0], Loaded("scripted", CharacterTokenizer(), [ScriptedEngine(outlook=FOUND)])
        )
        now, asked = time.monotonic(), Pruning(auto=Auto(0.1))
        ask = Ask([1, 2], [Sampling(max_tokens=3)], asked)
        job = Job((ask,), now, now + 60)
        with service.models.loaded[0].workers.queue.reserve():
            service.models.loaded[0].workers.queue.submit(job)
        generation = generation_of(job, service, requested="auto")
        pieces = [piece async for piece in generation.pieces()]
        service.close()

        assert len(pieces) == 3
        assert generation.report.griffin().sparsity == 0.25
        assert (job.asks, ask.pruning) == ((ask,), asked)
        assert job.asks[0] is ask

    asyncio.run(scenario())


def test_the_flag() -> None:
    """It takes a number or auto."""
    assert read_settings(["--sparsity", "auto", "--auto-tolerance", "2.5"]).sparsity == "auto"
    assert read_settings(["--sparsity", "0.25"]).sparsity == 0.25
