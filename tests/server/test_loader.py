"""From settings to engines: what the copies of a model and its workers share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import griffin
from griffin import Checkpoint
from griffin.decode.c.library import available
from griffin.engine import prefill
from server.loader import load
from server.settings import Settings
from tests.server import tiny_checkpoint

pytestmark = pytest.mark.skipif(not available(), reason="griffin/_native was not built: no C compiler")


@pytest.fixture
def folder(tmp_path: Path, smollm2: Checkpoint) -> str:
    return str(tiny_checkpoint.write(tmp_path / "tiny", smollm2.tokenizer))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits measured so far. Each measurement gives another one."""
    found, limits = list[int](), [64, 32, 16]

    def measured(*_: Callable[[int], object] | torch.device) -> int:
        found.append(limits[len(found)])
        return found[-1]

    monkeypatch.setattr(prefill, "measured", measured)
    return found


def test_the_limit_of_passes_is_measured_once(
    folder: str, timed: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All workers of all copies get the same limit; the log has the flag that sets it."""
    caplog.set_level("INFO", "griffin")
    copies = griffin.load_each(folder, ["cpu"]) * 2
    monkeypatch.setattr("griffin.load_each", lambda *_, **__: copies)
    loaded = load(Settings(model=folder, device="cpu", workers=2))

    assert [engine.pass_tokens for engine in loaded.engines] == [64] * 4  # type: ignore[attr-defined]
    assert timed == [64]
    assert "--prompt-pass-tokens 64" in caplog.text


@pytest.mark.parametrize("limit", [0, 48])
def test_a_limit_that_is_named_is_not_measured(limit: int, folder: str, timed: list[int]) -> None:
    """A number in the setting is used as it is."""
    loaded = load(Settings(model=folder, device="cpu", prompt_pass_tokens=limit))

    assert loaded.engines[0].pass_tokens == limit  # type: ignore[attr-defined]
    assert timed == []


def test_a_context_beyond_the_models(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which context is used instead."""
    engine = load(Settings(model=folder, device="cpu", max_model_len=10**6)).engines[0]

    context = engine.context_length
    assert f"--max-model-len 1000000 is more than the model's context; {context} is used" in caplog.text
