"""Several models on one server: which one answers, when one makes room for another, and what can go wrong."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from griffin.errors import LoadError
from server import room
from server.app import create_app
from server.commandline.reading import read_settings
from server.loader import Found, Loaded
from server.settings import Settings, SettingsInvalid
from tests.server import tiny_checkpoint
from tests.server.client import PATIENCE_S, metric, post
from tests.server.process import running
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, leave_when, listening, wait_until

GIB = 2**30


class Shelf:
    """A loader of scripted models, by their place, which ``--model`` names. The text of each is its place.

    sizes: bytes of each place.
    loads: places in the order of loading.
    gates: a load waits until its gate is set.
    broken: places that cannot be loaded.
    """

    def __init__(self, **sizes: int) -> None:
        self.sizes, self.loads, self.broken = sizes, list[str](), set[str]()
        self.engines = {place: ScriptedEngine(text=place) for place in sizes}
        self.gates: dict[str, threading.Event] = {}
        self.pass_tokens: list[int | str] = []

    def find(self, settings: Settings) -> Found:
        return Found(tuple(settings.served_names or [settings.model]), self.sizes[settings.model])

    def load(self, settings: Settings) -> Loaded:
        place = settings.model
        self.loads.append(place)
        if gate := self.gates.get(place):
            assert gate.wait(PATIENCE_S)
        if place in self.broken:
            raise LoadError(f"'{place}' does not exist")
        self.pass_tokens.append(settings.prompt_pass_tokens)
        name, size = self.find(settings).names[0], self.sizes[place]
        return Loaded(name, CharacterTokenizer(), [self.engines[place]], bytes=size, pass_tokens=48)


@contextmanager
def several(shelf: Shelf, **settings: object) -> Iterator[str]:
    """A server with all models of a shelf. The first one is loaded."""
    known = Settings(model=",".join(shelf.sizes), **settings)
    app = create_app(known, shelf.load, shelf.find)
    with listening(app) as url:
        wait_until(lambda: app.state.service.models.started)
        yield url


def said(url: str, model: str | None, **body: object) -> str:
    named = {} if model is None else {"model": model}
    answer = post(url, max_tokens=1, **named, **body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def waiting(url: str) -> float:
    return metric(url, "griffin_num_requests_waiting", model_name="beta")


def loaded(url: str) -> dict[str, bool]:
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    return {card["id"]: card["loaded"] for card in cards if card["parent"] is None}


def test_the_model_field_chooses_and_one_is_loaded_at_a_time() -> None:
    shelf = Shelf(alpha=1, beta=1)
    with several(shelf) as url:
        assert loaded(url) == {"alpha": True, "beta": False}
        assert [said(url, name) for name in (None, "alpha", "beta", "beta@sparsity=0.5", None)] == list("aabba")
        assert shelf.loads == ["alpha", "beta", "alpha"]
        # The limit is measured once; otherwise the same prompt could get another answer.
        assert shelf.pass_tokens == ["auto", "auto", 48]
        assert loaded(url) == {"alpha": True, "beta": False}
        assert metric(url, "griffin_model_loaded", model_name="alpha") == 1
        assert metric(url, "griffin_model_loaded", model_name="beta") == 0
        assert metric(url, "griffin_request_success_total", model_name="beta") == 2
        assert httpx.get(f"{url}/ready").json() == {"status": "ready", "model": "alpha"}


def test_within_the_limit_all_stay_and_the_least_recently_used_goes_first() -> None:
    shelf = Shelf(alpha=GIB, beta=GIB, gamma=GIB)
    with several(shelf, memory_limit=2.5) as url:
        assert [said(url, name) for name in ("beta", "alpha", "gamma")] == list("bag")
        assert loaded(url) == {"alpha": True, "beta": False, "gamma": True}
        assert [said(url, name) for name in ("alpha", "gamma")] == list("ag")
        assert shelf.loads == ["alpha", "beta", "gamma"]


def test_a_model_leaves_when_its_last_answer_is_whole() -> None:
    """A later request for it waits until the other model has answered an earlier one."""
    shelf = Shelf(alpha=1, beta=1)
    shelf.engines["alpha"].gate = threading.Event()
    with several(shelf) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(said, url, "alpha")
        wait_until(lambda: shelf.engines["alpha"].reads)
        other = pool.submit(said, url, "beta")
        wait_until(lambda: metric(url, "griffin_num_requests_running", model_name="alpha") == 1)
        late = pool.submit(said, url, "alpha")
        assert [other.done(), late.done()] == [False, False]
        assert shelf.loads == ["alpha"]
        shelf.engines["alpha"].gate.set()
        assert (first.result(PATIENCE_S), other.result(PATIENCE_S), late.result(PATIENCE_S)) == ("a", "b", "a")
    assert shelf.loads == ["alpha", "beta", "alpha"]


def test_a_crowd_for_two_models_is_answered() -> None:
    shelf = Shelf(alpha=1, beta=1)
    with several(shelf) as url, ThreadPoolExecutor(16) as pool:
        names = [("alpha", "beta")[number % 2] for number in range(24)]
        assert list(pool.map(lambda name: said(url, name), names)) == [name[0] for name in names]


def test_too_many_wait_for_a_model() -> None:
    shelf = Shelf(alpha=1, beta=1)
    shelf.gates["beta"] = threading.Event()
    with several(shelf, queue_size=1) as url, ThreadPoolExecutor() as pool:
        asked = [pool.submit(post, url, model="beta", max_tokens=1) for _ in range(3)]
        wait_until(lambda: any(each.done() for each in asked))
        (refused,) = [each.result() for each in asked if each.done()]
        shelf.gates["beta"].set()
        answers = [each.result(PATIENCE_S) for each in asked]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
    assert shelf.loads == ["alpha", "beta"]
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("model_loading", "5")


def test_a_model_that_cannot_be_loaded_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests get a 503. It is not tried at each request, so other models stay loaded."""
    shelf = Shelf(alpha=1, beta=1)
    shelf.broken.add("beta")
    with several(shelf) as url:
        refused = post(url, model="beta")
        assert said(url, "alpha") == "a"
        assert post(url, model="beta").json() == refused.json()
        assert shelf.loads == ["alpha", "beta", "alpha"]
    shelf.loads.clear()
    monkeypatch.setattr(room, "BROKEN_S", 0)
    with several(shelf) as url:
        assert post(url, model="beta").status_code == 503
        shelf.broken.clear()
        assert said(url, "beta") == "b"
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_unavailable"
    assert "retry-after" in refused.headers


def test_a_request_that_waits_for_a_model_may_time_out_or_leave() -> None:
    """Both free their places soon, and the loaded model still answers."""
    shelf = Shelf(alpha=1, beta=1)
    shelf.gates["beta"] = threading.Event()
    with several(shelf, queue_size=1, memory_limit=1) as url:
        late = post(url, model="beta", timeout=0.2)
        leave_at = time.monotonic() + 0.2
        leave_when(lambda: time.monotonic() > leave_at, url, model="beta", prompt="x")
        wait_until(lambda: metric(url, "griffin_num_requests_waiting", model_name="alpha") == 0)
        wait_until(lambda: waiting(url) == 0)
        assert said(url, "alpha") == "a"
        shelf.gates["beta"].set()
        assert said(url, "beta") == "b"
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")


def test_a_model_of_unknown_size_unloads_all_others() -> None:
    """The size of a model that is still on the hub is unknown, so it gets the memory alone."""
    shelf = Shelf(alpha=GIB, beta=0)
    with several(shelf, memory_limit=2) as url:
        assert said(url, "beta") == "b"
        assert loaded(url) == {"alpha": False, "beta": True}


def test_a_reader_who_is_slow_keeps_the_model() -> None:
    """The other model waits until the answer has been read, because the memory is not free before."""
    shelf = Shelf(alpha=1, beta=1)
    with several(shelf) as url, ThreadPoolExecutor() as pool:
        body = {"model": "alpha", "prompt": "x", "max_tokens": 900, "n": 16, "stream": True}
        # A small receive buffer, so that the system takes little that the client does not read.
        little = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)])
        with (
            httpx.Client(transport=little, timeout=30) as client,
            client.stream("POST", f"{url}/v1/completions", json=body) as answer,
        ):
            lines = answer.iter_raw(64)
            next(lines)
            other = pool.submit(said, url, "beta")
            wait_until(lambda: metric(url, "griffin_num_requests_running", model_name="alpha") == 0)
            finished = shelf.loads == ["alpha"]
            for _ in lines:
                pass
        assert other.result(PATIENCE_S) == "b"
    assert finished


def test_the_error_for_an_unknown_model_lists_all_names() -> None:
    with several(Shelf(alpha=1, beta=1)) as url:
        answer = post(url, model="gamma")
        card = httpx.get(f"{url}/v1/models/beta@sparsity=0.5").json()
    assert answer.status_code == 404
    assert "this server has 'alpha', 'beta'" in answer.json()["error"]["message"]
    assert (card["parent"], card["loaded"], card["parameters"]) == ("beta", False, None)


def test_a_server_that_shuts_down_loads_nothing_more() -> None:
    shelf = Shelf(alpha=1, beta=1)
    shelf.gates["beta"] = threading.Event()
    app = create_app(Settings(model="alpha,beta"), shelf.load, shelf.find)
    with listening(app) as url, ThreadPoolExecutor() as pool:
        wait_until(lambda: app.state.service.models.started)
        waiting = pool.submit(post, url, model="beta")
        wait_until(lambda: shelf.loads == ["alpha", "beta"])
        app.state.service.drain()
        wait_until(waiting.done)
        shelf.gates["beta"].set()
    assert (waiting.result().status_code, waiting.result().json()["error"]["code"]) == (503, "server_draining")


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ({"alpha": GIB, "beta": 3 * GIB}, {"memory_limit": 2}, "--memory-limit 2: beta needs 3.0 GiB by itself"),
        ({"alpha": 1, "beta": 1}, {"model": "same=alpha,same=beta"}, "two models are called same"),
    ],
)
def test_invalid_models_end_the_start(sizes: dict[str, int], settings: dict[str, object], message: str) -> None:
    failures: list[str] = []
    shelf = Shelf(**sizes)
    known = Settings(**{"model": ",".join(sizes), **settings})
    with listening(create_app(known, shelf.load, shelf.find, on_failure=failures.append)):
        wait_until(lambda: failures)
    assert message in failures[0]
    assert shelf.loads == []


def test_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: str) -> list[tuple[str, list[str]]]:
        return [(each.model, each.served_names) for each in read_settings(arguments).each_model]

    odd = tmp_path / "a=b,c.gguf"
    odd.touch()
    assert read("--model", "x", "--port", "1", "--model=small=y/z") == [("x", []), ("y/z", ["small"])]
    assert read("--model", str(odd)) == [(str(odd), [])]
    assert read("--model", str(odd), "--model", "x") == [(str(odd), []), ("x", [])]
    assert read("--model", "x", "--served-model-name", "a,b") == [("x", ["a", "b"])]
    monkeypatch.setenv("GRIFFIN_MODEL", "big=org/name:Q4_K_M, small=org/other")
    assert read() == [("org/name:Q4_K_M", ["big"]), ("org/other", ["small"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "x", "--model", "y", "--served-model-name", "a"], "use --model NAME=MODEL"),
        (["--model", "x", "--model", "y", "--memory-limit", "0"], "--memory-limit: must be a number above 0"),
        (["--model", "x", "--model"], "--model: expected one argument"),
    ],
)
def test_invalid_flags(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsInvalid, match=message):
        read_settings(arguments)


def test_two_checkpoints_in_a_real_server(tmp_path: Path) -> None:
    """Each model's answers are the same as alone; a missing file ends the start."""
    folder = tiny_checkpoint.write(tmp_path / "tiny")
    request = {"prompt": "The sea", "max_tokens": 8, "temperature": 0, "sparsity": 0.5}
    with running("--model", f"tiny={folder}", "--model", "SmolLM2-135M-Instruct") as server:
        both = [post(server.url, model=name, **request) for name in ("tiny", "SmolLM2-135M-Instruct", "tiny")]
        assert server.terminate() == 0
    assert server.log.count("was unloaded: another model needs its memory") == 2
    with running("--model", "SmolLM2-135M-Instruct") as single:
        alone = post(single.url, **request)
    texts = [answer.json()["choices"][0]["text"] for answer in both]
    assert texts[0] == texts[2] != texts[1] == alone.json()["choices"][0]["text"]
    with running("--model", str(folder), "--model", str(tmp_path / "none.gguf")) as missing:
        assert missing.wait() == 1
    assert "none.gguf' does not exist" in missing.log
