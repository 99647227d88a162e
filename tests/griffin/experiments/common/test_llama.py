"""llama.cpp in another process: questions, answers, and errors."""

import importlib.util
from pathlib import Path

import pytest
import torch

from griffin.errors import GriffinError
from griffin.experiments.common.llama import LlamaCpp, described, file_for_llama_cpp
from griffin.model.checkpoint.source import EMBEDDED_MODEL, embedded_file
from tests.griffin.experiments.llama import install, pretended_file


def test_a_prompt_is_read_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches have its own size, each run starts anew, and each token has a time, in order."""
    install(tmp_path / "package", monkeypatch, 10)
    with LlamaCpp(pretended_file(tmp_path / "a.gguf"), 64, 2) as llama_cpp:
        runs = [llama_cpp.timed([1, 2, 3, 4, 5], 3) for _ in range(2)]

    for run in runs:
        assert run["ids"] == [6, 7, 8]
        assert run["times"] == sorted(run["times"])
        assert run["peak_bytes"] > 1e6


def test_drafts_are_looked_up_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are those without drafts, also for the last token and an end. Wrong drafts are removed after each pass."""
    install(tmp_path / "package", monkeypatch, 40)
    with LlamaCpp(pretended_file(tmp_path / "a.gguf"), 64, 2) as llama_cpp:
        plain, looked_up, ended = (llama_cpp.timed([1, 2, 3], 8, *rest) for rest in ((), (2,), (2, {7, 30})))
        rows_1V = llama_cpp.logits([9], one_by_one=True)

    assert plain["ids"] == looked_up["ids"] == list(range(4, 12))
    assert (plain["drafted"], plain["accepted"]) == (0, 0)
    # Passes come after tokens 4, 6, 8 and 10. The last token of the answer is never drafted.
    assert (looked_up["drafted"], looked_up["accepted"]) == (6, 3)
    assert len(looked_up["times"]) == 8
    assert ended["ids"] == [4, 5, 6, 7]
    # The cache holds only the prompt and the tokens before the latest.
    assert rows_1V.max() == 3 + 3 + 1


@pytest.mark.parametrize("one_by_one", [True, False])
def test_logits_of_given_tokens(one_by_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each token. A call continues the sequence until it is cleared."""
    install(tmp_path / "package", monkeypatch, 10)
    with LlamaCpp(pretended_file(tmp_path / "a.gguf"), 64, 2) as llama_cpp:
        llama_cpp.logits([1, 2], one_by_one=one_by_one)
        found_TV = llama_cpp.logits([3, 4, 5, 6, 7, 8], one_by_one=one_by_one)
        llama_cpp.clear()
        again_TV = llama_cpp.logits([3], one_by_one=one_by_one)

    assert found_TV.shape == (6, 10)
    assert found_TV.argmax(dim=1).tolist() == [4, 5, 6, 7, 8, 9]
    assert found_TV.amax(dim=1).tolist() == [3, 4, 5, 6, 7, 8]
    assert torch.equal(again_TV.max(), torch.tensor(1.0))


def test_it_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions and settings, for programs and for people. What this version does not report is unknown."""
    install(tmp_path / "package", monkeypatch, 10)
    with LlamaCpp(pretended_file(tmp_path / "a.gguf"), 64, 2) as llama_cpp:
        facts = llama_cpp.facts

    assert (facts["package"], facts["threads"], facts["n_ctx"], facts["vocabulary"]) == ("9.9", 2, 64, 10)
    assert (facts["flash_attention"], facts["mmap"], facts["ggml"]) == ("enabled", True, "unknown")
    assert described(facts).endswith("weights: CPU_Mapped model 92.10 MiB, built with AVX2 OPENMP")


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, no program, no model, an unknown token, a process that dies, another vocabulary."""
    good = pretended_file(tmp_path / "a.gguf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "llama_cpp.py").write_text("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "empty"))
    with pytest.raises(GriffinError, match="not installed: pip install llama-cpp-python, or name a Python"):
        LlamaCpp(good, 64, 2)
    with pytest.raises(GriffinError, match="--llama-cpp-python: cannot run '/nowhere/python'"):
        LlamaCpp(good, 64, 2, Path("/nowhere/python"))
    install(tmp_path / "package", monkeypatch, 10)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GriffinError, match=r"text\.gguf': llama.cpp cannot load this file"):
        LlamaCpp(tmp_path / "text.gguf", 64, 2)
    with LlamaCpp(good, 64, 2) as llama_cpp:
        with pytest.raises(GriffinError, match="has 10 tokens, but the model has 128: another model"):
            llama_cpp.require_vocabulary(128)
        with pytest.raises(GriffinError, match=r"a\.gguf': llama_decode ended with -1 on 1 tokens"):
            llama_cpp.timed([10], 3)
    with (
        LlamaCpp(pretended_file(tmp_path / "dies.gguf"), 64, 2) as llama_cpp,
        pytest.raises(GriffinError, match="its process ended with code 7: about to die"),
    ):
        llama_cpp.timed([1], 3)


def test_the_models_own_file(tmp_path: Path) -> None:
    """--llama-cpp without a value means this file; random weights and directories have none."""
    assert file_for_llama_cpp(True, EMBEDDED_MODEL) == embedded_file()
    assert file_for_llama_cpp(tmp_path / "x.gguf", None) == tmp_path / "x.gguf"
    with pytest.raises(GriffinError, match="--shape has no file; name one: --llama-cpp FILE"):
        file_for_llama_cpp(True, None)
    with pytest.raises(GriffinError, match=r"'owner/name' is no \.gguf file"):
        file_for_llama_cpp(True, "owner/name")


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_real_llama_cpp() -> None:
    """It reads the same text token by token and at once."""
    with LlamaCpp(embedded_file(), 64, 1) as llama_cpp:
        steps_TV = llama_cpp.logits([1, 504, 281], one_by_one=True)
        llama_cpp.clear()
        batch_TV = llama_cpp.logits([1, 504, 281], one_by_one=False)

    assert torch.allclose(steps_TV, batch_TV, atol=0.5)
