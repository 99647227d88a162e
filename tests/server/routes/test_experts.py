"""GET /v1/griffin/experts/{expert_set}: which neurons a request ran with."""

from dataclasses import replace

import httpx
import torch

from griffin import Pruning, Selection
from griffin.neurons import Correction, Kept
from server.work.experts import CORRECTION_BYTES, RecentExperts
from tests.server.client import post
from tests.server.scripted import EXPERTS, ScriptedEngine, served


def selection(name: str) -> Selection:
    """Of 200 indices: 800 bytes."""
    return Selection(0.0, name, 5, Kept(tuple(torch.arange(200, dtype=torch.int32).view(2, 100))))


def test_the_neurons_of_an_answer() -> None:
    """By the name that the answer gives."""
    with served(ScriptedEngine()) as url:
        name = post(url, max_tokens=3, sparsity=0.5).json()["griffin"]["expert_set"]
        answer = httpx.get(f"{url}/v1/griffin/experts/{name}").json()

    assert answer == {
        "object": "griffin.experts",
        "expert_set": name,
        "model": "scripted",
        "layers": 2,
        "neurons_per_layer": 100,
        "kept_per_layer": [50, 50],
        "prompt_tokens": 5,
        "kept": EXPERTS.tolist(),
    }


def test_an_unknown_set() -> None:
    """Says why it may be unknown."""
    with served(ScriptedEngine()) as url:
        answer = httpx.get(f"{url}/v1/griffin/experts/0123456789abcdef")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "expert_set_not_found"
    assert "latest requests" in answer.json()["error"]["message"]


def test_the_oldest_go_first() -> None:
    """Within the budget; one that is seen again is the latest again, and counts once."""
    recent = RecentExperts(budget_bytes=1_700)
    for name in ("a", "b", "a", "c"):
        recent.remember(selection(name), Pruning())

    assert [recent.find(name) is not None for name in "abc"] == [True, False, True]


def test_one_that_is_asked_for_stays() -> None:
    """Whoever generates with it names it again and again."""
    recent = RecentExperts(budget_bytes=1_700)
    for name in ("a", "b", "c"):
        recent.remember(selection(name), Pruning())
        recent.find("a")

    assert [recent.find(name) is not None for name in "abc"] == [True, False, True]


def test_one_too_large_is_not_kept() -> None:
    """And nothing is left of it in the count."""
    recent = RecentExperts(budget_bytes=700)
    recent.remember(selection("a"), Pruning())
    recent.remember(None, Pruning())

    assert recent.find("a") is None


def with_correction(selection: Selection, correction: Correction) -> Selection:
    return replace(selection, kept=replace(selection.kept, correction=correction))


def test_corrections_go_before_sets() -> None:
    """What stands for removed neurons is held of the latest alone; of others it is known which neurons they are."""
    recent = RecentExperts(budget_bytes=1_700, correction_bytes=1_000)
    correction = Correction([torch.zeros(100, 1)], [torch.zeros(1, 100)])
    for name in ("a", "b"):
        recent.remember(with_correction(selection(name), correction), Pruning(method="griffin+"))
    recent.remember(selection("b"), Pruning())
    found = {name: recent.find(name) for name in "ab"}

    assert [known and known.is_whole for known in found.values()] == [False, True]
    assert found["a"] is not None
    assert len(found["a"].selection.kept.layers) == 2


def test_a_set_without_its_correction_is_not_taken_again() -> None:
    """As if it were not known: an answer with less would not be the same."""
    # As large as there is room for, but no memory.
    half = torch.zeros(1).expand(CORRECTION_BYTES // 8)
    engine = ScriptedEngine(correction=Correction([half], [half]))
    with served(engine) as url:
        name = post(url, max_tokens=3, sparsity=0.5, griffin={"method": "griffin+"}).json()["griffin"]["expert_set"]
        taken = post(url, max_tokens=3, griffin={"expert_set": name})
        engine.expert_set = "beef"
        post(url, max_tokens=3, sparsity=0.5, griffin={"method": "griffin+"})
        refused = post(url, max_tokens=3, griffin={"expert_set": name})
        shown = httpx.get(f"{url}/v1/griffin/experts/{name}")

    assert taken.status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "expert_set_not_found")
    assert shown.status_code == 200
