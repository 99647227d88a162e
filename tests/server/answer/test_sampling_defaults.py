"""A model's own sampling values hold if a request names none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from griffin import Checkpoint, Sampling, Scoring
from server.loader import Loaded, load
from server.settings import Settings
from tests.server import tiny_checkpoint
from tests.server.client import post
from tests.server.scripted import CharacterTokenizer, ScriptedEngine, served

MODELS = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 30}
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class Listening(ScriptedEngine):
    """Keeps the sampling of each request."""

    samplings: list[Sampling] = field(default_factory=list)

    def check(self, prompt_ids: Sequence[int], sampling: Sampling | None, scoring: Scoring | None) -> None:
        super().check(prompt_ids, sampling, scoring)
        if sampling is not None:
            self.samplings.append(sampling)


@contextmanager
def serving(engine: ScriptedEngine, defaults: Mapping[str, float]) -> Iterator[str]:
    loaded = Loaded("scripted", CharacterTokenizer(), [engine], sampling_defaults=defaults)
    with served(loader=lambda _: loaded) as url:
        yield url


def applied(
    body: dict[str, Any], path: str = "/v1/completions", defaults: Mapping[str, float] = MODELS
) -> dict[str, Any]:
    """The sampling values that a request gets."""
    engine = Listening()
    with serving(engine, defaults) as url:
        answer = post(url, path, **({"messages": MESSAGES} if path == CHAT else {}), **body)
        assert answer.status_code == 200, answer.text
    (sampling,) = engine.samplings
    return {name: getattr(sampling, name) for name in MODELS}


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
@pytest.mark.parametrize("unset", [{}, dict.fromkeys(NEUTRAL)])
def test_fields_that_are_left_out(path: str, unset: dict[str, Any]) -> None:
    """A null has the same effect as a missing field."""
    assert applied({"max_tokens": 5, **unset}, path) == {**MODELS, "max_tokens": 5}
    assert applied({"max_tokens": 5, **unset}, path, {}) == {**NEUTRAL, "max_tokens": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("temperature", 1), ("top_p", 1), ("top_k", 0), ("top_k", 7), ("min_p", 0),
     ("repetition_penalty", 1)],
)  # fmt: skip
def test_fields_that_are_named(name: str, value: float) -> None:
    """A neutral value counts, too; the other fields keep the model's values."""
    assert applied({"max_tokens": 5, name: value}) == {**MODELS, "max_tokens": 5, name: value}


def test_top_k_of_minus_one_keeps_all() -> None:
    """-1 does not mean the model's value."""
    assert applied({"top_k": -1})["top_k"] == 0


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [("/v1/completions", {}, 16), (CHAT, {}, 30), (CHAT, {"max_tokens": 50}, 50), (CHAT, {"min_tokens": 40}, 40),
     (CHAT, {"messages": [{"role": "user", "content": "x" * 970}]}, 1000 - 986)],
)  # fmt: skip
def test_the_models_token_limit_applies_to_chats(path: str, body: dict[str, Any], limit: int) -> None:
    """It is a default for chats only: a request may ask for more, and the context still limits it."""
    engine = Listening()
    with serving(engine, MODELS) as url:
        report = post(url, path, **({"messages": MESSAGES} if path == CHAT else {}) | body).json()["griffin"]

    assert (report["max_tokens"], engine.samplings[0].max_tokens) == (limit, limit)


def test_the_list_of_models_has_the_defaults() -> None:
    """The list of models has the values that apply, neutral ones included."""
    for defaults, shown in ((MODELS, MODELS), ({"top_k": 20}, {**NEUTRAL, "top_k": 20, "max_tokens": None})):
        with serving(ScriptedEngine(), defaults) as url:
            cards = httpx.get(f"{url}/v1/models").json()["data"]

        assert [card["sampling_defaults"] for card in cards] == [shown] * len(cards)


@pytest.mark.parametrize(("setting", "found"), [("auto", {"temperature": 0.5, "top_k": 3}), ("none", {})])
def test_the_setting(setting: Any, found: Mapping[str, float], tmp_path: Path, smollm2: Checkpoint) -> None:
    """With auto the file is read, with none it is not."""
    folder = tiny_checkpoint.write(tmp_path / "tiny", smollm2.tokenizer)
    transformers.GenerationConfig(do_sample=True, temperature=0.5, top_k=3).save_pretrained(folder)
    loaded = load(Settings(model=str(folder), generation_config=setting, served_model_name="a,b", device="cpu"))

    assert loaded.sampling_defaults == found
    assert (loaded.name, loaded.other_names) == ("a", ["b"])
