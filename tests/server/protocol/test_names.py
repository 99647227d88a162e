"""A model with several names: each name works, and metrics have the first one."""

import sys
from collections.abc import Iterator

import httpx
import pytest

from server.loader import Loaded
from server.process import main
from tests.server.client import metric, post, stream
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

NAMES = ("org/first", "second", "gpt 4")


@pytest.fixture
def url() -> Iterator[str]:
    loaded = Loaded(NAMES[0], CharacterTokenizer(), [ScriptedEngine()], other_names=NAMES[1:])
    with served(loader=lambda _: loaded, sparsity=0.25) as address:
        httpx.get(f"{address}/ready")
        yield address


@pytest.mark.parametrize("name", NAMES)
def test_each_name_answers_and_stands_in_the_answer(url: str, name: str) -> None:
    """The answer repeats the name, streamed or not, and with a sparsity."""
    whole = post(url, model=name, max_tokens=2).json()
    pruned = post(url, model=f"{name}@sparsity=0.5", max_tokens=3).json()
    chunks = stream(url, model=name, max_tokens=2)
    chat = post(url, "/v1/chat/completions", model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=2)

    assert (whole["model"], chat.json()["model"]) == (name, name)
    assert (pruned["model"], pruned["griffin"]["sparsity"]) == (f"{name}@sparsity=0.5", 0.5)
    assert {chunk["model"] for chunk in chunks} == {name}
    assert post(url, "/tokenize", model=name, prompt="hi").json()["count"] == 2


def test_metrics_keep_the_first_name(url: str) -> None:
    """With others, a dashboard would show several models."""
    for name in NAMES:
        post(url, model=name, max_tokens=2)

    assert metric(url, "griffin_request_success_total", model_name=NAMES[0]) == len(NAMES)
    assert 'model_name="second"' not in httpx.get(f"{url}/metrics").text


def test_all_names_are_listed(url: str) -> None:
    """The first name comes first, because clients take it; then come the others and the first one's aliases."""
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    ids = [card["id"] for card in cards]

    assert ids == [*NAMES, *(f"{NAMES[0]}@sparsity={sparsity}" for sparsity in ("0.25", "0.5", "0.75"))]
    assert [card["parent"] for card in cards] == [None, None, None, *[NAMES[0]] * 3]
    assert {card["root"] for card in cards} == {NAMES[0]}
    assert [card["aliases"][1] for card in cards[:3]] == [f"{name}@sparsity=0.5" for name in NAMES]
    assert [card["sparsity"] for card in cards[:3]] == [0.25] * 3


@pytest.mark.parametrize("name", NAMES)
def test_each_name_can_be_looked_up(url: str, name: str) -> None:
    """Each name has a card, and so has its alias with a sparsity."""
    card = httpx.get(f"{url}/v1/models/{name}").json()
    alias = httpx.get(f"{url}/v1/models/{name}@sparsity=0.5").json()

    assert (card["id"], card["parent"]) == (name, None)
    assert (alias["id"], alias["parent"], alias["sparsity"]) == (f"{name}@sparsity=0.5", name, 0.5)


@pytest.mark.parametrize("name", ["third", "Second", " second", "org", "second,gpt 4", "third@sparsity=0.5"])
def test_other_names_are_not_found(url: str, name: str) -> None:
    """Upper and lower case differ, and the error lists all names."""
    answer = post(url, model=name)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "'org/first', 'second', 'gpt 4'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", ""], "--model: is empty"),
        (["--served-model-name="], "--served-model-name: is empty"),
        (["--served-model-name", "a,a"], "--served-model-name: names a twice"),
    ],
)
def test_a_wrong_name_ends_the_start(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, with one line, before anything is loaded."""
    monkeypatch.setattr(sys, "argv", ["server", *arguments])

    assert main() == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
