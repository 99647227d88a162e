"""GET /v1/griffin/experts/{expert_set} names the neurons that a request ran with."""

import httpx
import torch

from griffin import Pruning, Selection
from griffin.neurons import Kept
from server.work.experts import RecentExperts
from tests.server.client import post
from tests.server.scripted import EXPERTS, ScriptedEngine, served


def selection(name: str) -> Selection:
    """A selection of 200 indices, which take 800 bytes."""
    return Selection(0.0, name, 5, Kept(tuple(torch.arange(200, dtype=torch.int32).view(2, 100))))


def test_the_neurons_of_an_answer() -> None:
    """The report's ``expert_set`` finds them."""
    with served(ScriptedEngine()) as url:
        name = post(url, max_tokens=3, sparsity=0.5, griffin={"method": "griffin"}).json()["griffin"]["expert_set"]
        answer = httpx.get(f"{url}/v1/griffin/experts/{name}").json()

    assert answer == {
        "object": "griffin.experts",
        "expert_set": name,
        "model": "scripted",
        "layers": 2,
        "neurons_per_layer": 100,
        "method": "griffin",
        "kept_per_layer": [50, 50],
        "prompt_tokens": 5,
        "kept": EXPERTS.tolist(),
    }


def test_an_unknown_set() -> None:
    """The error says why the set may be unknown."""
    with served(ScriptedEngine()) as url:
        answer = httpx.get(f"{url}/v1/griffin/experts/0123456789abcdef")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "expert_set_not_found"
    assert (
        "latest requests are kept: a request without one chooses its neurons anew" in answer.json()["error"]["message"]
    )


def test_the_oldest_sets_are_dropped_first() -> None:
    """The budget limits the sets. A set that comes again is the latest again and counts once."""
    recent = RecentExperts(budget_bytes=1_700)
    for name in ("a", "b", "a", "c"):
        recent.remember(selection(name), Pruning())

    assert [recent.find(name) is not None for name in "abc"] == [True, False, True]


def test_a_set_that_requests_reuse_stays() -> None:
    """A set that requests reuse is asked for again and again."""
    recent = RecentExperts(budget_bytes=1_700)
    for name in ("a", "b", "c"):
        recent.remember(selection(name), Pruning())
        recent.find("a")

    assert [recent.find(name) is not None for name in "abc"] == [True, False, True]


def test_the_latest_is_kept_however_large_it_is() -> None:
    """It stays until the next set comes. An answer without neurons brings no set."""
    recent = RecentExperts(budget_bytes=700)
    recent.remember(selection("a"), Pruning())
    recent.remember(None, Pruning())
    kept = recent.find("a") is not None
    recent.remember(selection("b"), Pruning())

    assert [kept, recent.find("a") is None, recent.find("b") is not None] == [True, True, True]
