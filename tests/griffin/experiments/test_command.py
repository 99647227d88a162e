"""python -m griffin.experiments: what a user sees, and the errors."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import AutoConfig

from griffin.__main__ import main as product_main
from griffin.experiments.__main__ import COMMANDS, main
from griffin.experiments.common import commandline
from griffin.experiments.registry import EXPERIMENTS
from griffin.experiments.tasks import simulation
from griffin.model.loading import Checkpoint
from tests.griffin.experiments.data import write_data
from tests.tiny import tiny_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process: its exit code, its output and its errors."""
    logger = logging.getLogger("griffin")
    level, handlers = logger.level, logging.getLogger().handlers[:]

    def typed(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["griffin.experiments", *map(str, words)])
        try:
            code = main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    yield typed
    logger.setLevel(level)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="module")
def checkpoint(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a directory."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama", vocab_size=49152, max_position_embeddings=128).save_pretrained(folder)
    smollm2.tokenizer.save_pretrained(folder)
    return folder


def test_a_package_of_the_extra_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what to install. Any other missing module is a fault, and keeps its traceback."""

    def run_without(name: str) -> int:
        def fail(_: argparse.Namespace) -> None:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

        command = cast(commandline.Runnable, SimpleNamespace(run=fail))
        return commandline.run(argparse.Namespace(name="x"), {"x": command})

    assert run_without("lm_eval.api") == 1
    assert capsys.readouterr().err.startswith("griffin: this needs lm_eval.api, of the extra 'experiments'; run")
    with pytest.raises(ModuleNotFoundError):
        run_without("elsewhere")


def test_help_teaches(run: Run) -> None:
    """Each command has a line that says what it is, and each of its flags has a meaning."""
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n    {name}" in out
        code, own, _ = run(name, "--help")
        assert code == 0
        assert all(len(line.split()) > 1 for line in own.splitlines() if line.startswith("  --"))
    assert next(iter(EXPERIMENTS)) in out


def test_an_experiment_from_the_command_line(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """A table on standard output, files in a folder with the model's name, and the command that made them."""
    data = write_data(tmp_path / "data")
    words = ("classification", "--model", checkpoint, "--data", data, "--out", tmp_path / "out", "--tasks", "piqa")
    code, out, _ = run(*words, "--dtype", "float32")

    assert code == 0
    assert "PIQA" in out
    assert f"results: {tmp_path / 'out/tiny/classification.json'}, {tmp_path / 'out/tiny/classification.svg'}" in out
    found = json.loads((tmp_path / "out/tiny/classification.json").read_text())
    assert found["command"] == (
        f"python -m griffin.experiments classification --model {checkpoint} --dtype float32 --data {data} --tasks piqa"
    )
    assert (found["model"], found["model_type"], found["data"]) == ("tiny", "llama", "data")


def test_a_run_that_was_stopped_goes_on(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C keeps what was computed; the same command computes only the rest."""
    data = write_data(tmp_path / "data")
    words = ("generation", "--model", checkpoint, "--data", data, "--out", tmp_path / "out", "--tasks", "qasper")
    generate, texts = simulation._text, []

    def stopped(*arguments: object) -> str:
        texts.append(arguments)
        if len(texts) == 3:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(simulation, "_text", stopped)
    assert run(*words)[::2] == (130, "griffin: stopped; run the same command again to go on\n")
    code, out, _ = run(*words)

    assert code == 0
    assert "QASPER F1" in out
    # Two of the six texts were there already. (The third question has no text: it is a yes-or-no question.)
    assert len(texts) == 3 + 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flocking", "--data", "nowhere"], "--data: 'nowhere' is not a directory"),
        (["flocking", "--model", "./nowhere"], "'./nowhere' does not exist"),
        (["classification", "--sparsity", "1"], "argument --sparsity: '1' is not at least 0 and below 1"),
        (["classification", "--tasks", "chess"], "argument --tasks: invalid choice: 'chess'"),
        (["generation", "--limit", "-1"], "argument --limit: '-1' is not a whole number of at least 0"),
        (["nothing"], "argument NAME: invalid choice: 'nothing'"),
        (["pace", "--tokens"], "argument --tokens: expected one argument"),
        ([], "the following arguments are required: NAME"),
    ],
)
def test_bad_flags(words: list[str], message: str, run: Run) -> None:
    """One line that names the flag."""
    code, _, err = run(*words)

    assert code in (1, 2)
    assert err.startswith(f"griffin: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("module", ["griffin", "griffin.experiments"])
def test_tune_is_a_command_of_the_product(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    """The old spelling also works, and names the new one."""
    monkeypatch.setattr(sys, "argv", [module, "tune", "--model", "./nowhere", "--prompts", "x"])
    run = {"griffin": product_main, "griffin.experiments": main}[module]
    try:
        code = run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    *hints, error = capsys.readouterr().err.splitlines()

    assert code in (1, 2)
    assert error.startswith("griffin: ")
    assert "nowhere" in error or "'x'" in error
    assert ["python -m griffin tune" in hint for hint in hints] == [True] * (module == "griffin.experiments")


def test_help_of_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it does, how long it takes, an example, and no markup for code."""
    said = {}
    for name in ("", "tune"):
        monkeypatch.setattr(sys, "argv", ["griffin", *([name] if name else []), "--help"])
        with pytest.raises(SystemExit):
            product_main()
        said[name] = capsys.readouterr().out

    assert "\n    tune" in said[""]
    assert all("examples:\n  python -m griffin " in out for out in said.values())
    assert "minutes" in said["tune"]
    assert not any("``" in out for out in said.values())


def test_out_of_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no fault of the program. Any other error is a fault, and keeps its traceback."""

    def run(error: Exception) -> int:
        def fails(_: argparse.Namespace) -> None:
            raise error

        command = SimpleNamespace(run=fails)
        return commandline.run(argparse.Namespace(name="big"), {"big": cast(commandline.Runnable, command)})

    assert run(MemoryError()) == 1
    assert capsys.readouterr().err == "griffin: out of memory; try a smaller --dtype or a larger device\n"
    with pytest.raises(TypeError):
        run(TypeError())


def test_bad_data(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """A missing file or field is reported before anything is computed; so is an empty folder."""
    data = write_data(tmp_path / "data", piqa=[{"goal": "Fly"}])
    own = ("--model", checkpoint, "--data", data, "--out", tmp_path / "out")

    assert run("classification", *own)[::2] == (
        1, f"griffin: '{data / 'piqa.jsonl'}', line 1: the field 'sol1' is missing; it needs goal, sol1, sol2, label\n",
    )  # fmt: skip
    code, _, err = run("jaccard", *own, "--tokens", "64")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "has no wikitext2_raw_test.jsonl (one JSON object a line with: title, text)" in err


def test_a_text_longer_than_the_context(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """The error has the flag and its largest value."""
    data = write_data(tmp_path / "data")
    (data / "wikitext2_raw_test.jsonl").write_text(json.dumps({"title": "t", "text": "some words here " * 500}))
    code, _, err = run("randomness", "--model", checkpoint, "--data", data, "--out", tmp_path, "--tokens", "129")

    assert (code, len(err.splitlines())) == (1, 1)
    assert "--tokens: 129 is more than the context of this model, 128" in err


def test_an_unsupported_model_type(run: Run, tmp_path: Path) -> None:
    """Refused by name, with the supported types."""
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path / "model")
    code, _, err = run("gating", "--model", tmp_path / "model", "--data", write_data(tmp_path / "data"))

    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith("griffin: model type 'mixtral' (a mixture of experts) is not supported; supported are: llama")
