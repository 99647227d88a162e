"""Modes, comparisons and reused neurons over HTTP, with a real engine behind a real server."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import griffin
from griffin.errors import LoadError
from griffin.experiments.common.results import write_whole
from griffin.method.auto import LossTable
from griffin.method.preparation import losses_path
from griffin.model.identity import identity
from server.loader import load
from server.settings import Settings
from tests.server import tiny_checkpoint
from tests.server.client import metric, post
from tests.server.process import running
from tests.server.scripted import wait_until

PROMPT = "the cat sat on the mat and the dog sat on the cat and the mat " * 2
SHARE = ("--shadow-share", "1")
DRAFTED = {"draft": "ngram", "draft_tokens": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("modes") / "tiny")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running("--model", str(folder), "--dtype", "float32", *SHARE, OMP_NUM_THREADS="1") as server:
        yield server.url


def ask(url: str, **body: Any) -> Any:
    return (
        post(url, **{"prompt": PROMPT, "max_tokens": 24, "ignore_eos": True, "seed": 1, **body})
        .raise_for_status()
        .json()
    )


@pytest.mark.parametrize("draft", ["pruned", "ngram", "both"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_lossless_is_the_full_models_answer(url: str, draft: str, temperature: int) -> None:
    """Each token is the same, greedy or drawn; report and metrics count the same drafts."""
    dense = ask(url, temperature=temperature)
    before = metric(url, "griffin_spec_decode_num_draft_tokens_total", mode="lossless")
    sparsity = {} if draft == "ngram" else {"sparsity": 0.9}
    lossless = ask(url, temperature=temperature, griffin={"mode": "lossless", "draft": draft}, **sparsity)
    counted = metric(url, "griffin_spec_decode_num_draft_tokens_total", mode="lossless") - before

    assert lossless["choices"] == dense["choices"]
    verification = lossless["griffin"]["verification"]
    if verification is None:
        # No n-gram was worth a pass.
        assert (draft, counted) == ("ngram", 0)
        return
    assert verification["accepted_tokens"] <= verification["drafted_tokens"] == counted
    assert draft == "ngram" or verification["drafted_tokens"] > 0


@pytest.mark.parametrize("sparsity", [0, 0.5])
@pytest.mark.parametrize("method", ["griffin", "griffin+"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_drafts_change_no_answer(url: str, sparsity: float, method: str, temperature: int) -> None:
    """The number of drafts does not matter, chosen by time or by the request; greedy or drawn, with two answers."""
    asked = {"sparsity": sparsity, "temperature": temperature, "n": 2, "logprobs": 2}
    without, throttled, named = (
        ask(url, **asked, griffin={"method": method, **griffin}) for griffin in ({"draft": "none"}, {}, DRAFTED)
    )

    assert without["griffin"]["verification"] is None
    assert throttled["choices"] == named["choices"] == without["choices"]
    assert named["usage"]["completion_tokens"] == without["usage"]["completion_tokens"]


def test_an_answer_compared_at_once_and_in_idle_time(url: str) -> None:
    """The same tokens and neurons give the same figures."""
    name = "griffin_shadow_kl_nats"
    wait_until(lambda: metric(url, f"{name}_count", sparsity="0.75") == 0)
    report = ask(url, sparsity=0.75, griffin={"compare": True})["griffin"]
    wait_until(lambda: metric(url, f"{name}_count", sparsity="0.75") == 1)

    assert report["comparison"]["tokens"] == 23
    assert report["comparison"]["kl"] > 0
    assert metric(url, f"{name}_sum", sparsity="0.75") == pytest.approx(report["comparison"]["kl"], abs=2e-6)
    agreement = metric(url, "griffin_shadow_top1_agreement_ratio_sum", sparsity="0.75")
    assert agreement == pytest.approx(report["comparison"]["top1_agreement"], abs=2e-6)


def test_reused_neurons_are_the_same_neurons(url: str) -> None:
    """The same prompt gives the same answer; another prompt runs with the same set."""
    chosen = ask(url, sparsity=0.5)
    again = ask(url, griffin={"expert_set": chosen["griffin"]["expert_set"]})
    other = ask(url, prompt="hello there", griffin={"expert_set": chosen["griffin"]["expert_set"]})

    assert again["choices"] == chosen["choices"]
    assert again["griffin"]["expert_set"] == other["griffin"]["expert_set"] == chosen["griffin"]["expert_set"]
    assert other["griffin"]["prompt_tokens"] == chosen["griffin"]["prompt_tokens"]


def test_griffin_plus_is_refused_with_streamed_weights(folder: Path) -> None:
    """griffin+ does not run with streamed weights: a request or the start is refused. The default is then griffin."""
    with running("--model", str(folder), "--dtype", "float32", "--ff-offload", "cpu", OMP_NUM_THREADS="1") as server:
        refusals = [
            post(server.url, prompt=PROMPT, sparsity=0.5, griffin={"method": "griffin+"}, stream=stream)
            for stream in (False, True)
        ]
        paper = post(server.url, prompt=PROMPT, max_tokens=3, sparsity=0.5)

    assert [(refusal.status_code, refusal.json()["error"]["param"]) for refusal in refusals] == [
        (400, "griffin.method")
    ] * 2
    assert paper.json()["griffin"]["method"] == "griffin"
    with pytest.raises(LoadError, match=r"^--method griffin\+ reads weights in place, but --ff-offload"):
        load(Settings(model=str(folder), method="griffin+", device="cpu", ff_offload="cpu"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_sparsity_that_needs_a_measured_model(url: str, folder: Path, stream: bool) -> None:
    """The request or the start is refused if the model is not measured. By default no measurement is needed."""
    refusal = post(url, sparsity="auto", stream=stream, griffin={"method": "griffin"})

    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "sparsity")
    assert "python -m griffin tune" in refusal.json()["error"]["message"]
    with pytest.raises(
        LoadError, match=r"^--sparsity auto needs .* to be measured once with method griffin: python -m"
    ):
        load(Settings(model=str(folder), sparsity="auto", method="griffin", device="cpu"))
    if not stream:
        report = post(url, sparsity="auto").json()["griffin"]
        assert report["auto"] == {"sparsity": 0.35, "predicted_perplexity_percent": 4.71, "tolerance_percent": 5.0}


@pytest.fixture(scope="module")
def measured_url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with method griffin+ and a model that was measured."""
    cache = tmp_path_factory.mktemp("cache")
    model = griffin.load(str(folder), dtype="float32", device="cpu", cache_dir=cache).model
    table = LossTable("griffin+", [0.5], [math.log(0.2)], 0.0, 0.0, 0.0, [8, 64], [0.0], 48, 0.1, 9)
    write_whole(losses_path(model, "griffin+", cache), table.packed(identity(model)))
    flags = ("--sparsity", "auto", "--auto-tolerance", "10", "--cache-dir", str(cache))
    with running("--model", str(folder), "--dtype", "float32", *flags, OMP_NUM_THREADS="1") as server:
        yield server.url


def test_method_griffin_plus(measured_url: str) -> None:
    """No neuron is removed; the counted reads are about those of method griffin."""
    full = ask(measured_url, sparsity=0)["griffin"]
    paper = ask(measured_url, sparsity=0.5, griffin={"method": "griffin"})["griffin"]
    # The number of drafts depends on time, and drafts would change the shares.
    plus = ask(measured_url, sparsity=0.5, griffin={"draft": "none"})
    report = plus["griffin"]
    again = ask(measured_url, griffin={"expert_set": report["expert_set"], "draft": "none"})
    known = httpx.get(f"{measured_url}/v1/griffin/experts/{report['expert_set']}").json()

    assert (report["method"], paper["method"]) == ("griffin+", "griffin")
    assert report["neurons_kept"] == report["neurons_total"]
    assert full["shares_read"] == {"gate": 1, "up": 1, "down": 1}
    assert set(paper["shares_read"].values()) == {0.5}
    assert sum(report["shares_read"].values()) / 3 == pytest.approx(0.5, abs=0.1)
    assert paper["active_parameters"] * 0.9 < report["active_parameters"] < full["active_parameters"]
    assert paper["bytes_per_token"] * 0.9 < report["bytes_per_token"] < full["bytes_per_token"]
    assert (known["method"], known["kept"], known["kept_per_layer"]) == ("griffin+", None, None)
    assert again["griffin"]["shares_read"] == report["shares_read"]
    assert report["expert_set"] != paper["expert_set"]
    assert again["choices"] == plus["choices"]


def test_sparsity_auto(measured_url: str) -> None:
    """The sparsity follows from the loss table and the tolerance of 10 %."""
    report = ask(measured_url)["griffin"]
    named = ask(measured_url, sparsity=0.2)["griffin"]

    assert (report["sparsity"], report["requested_sparsity"], report["reason"]) == (0.2, None, "auto")
    assert report["auto"]["predicted_perplexity_percent"] == pytest.approx(8.33, abs=0.01)
    assert report["auto"]["tolerance_percent"] == pytest.approx(10)
    assert report["expert_set"] == named["expert_set"]
