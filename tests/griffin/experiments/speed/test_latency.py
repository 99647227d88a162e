"""The benchmark runs, and people and programs can read its output."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from gguf import GGUFWriter

from griffin.errors import GriffinError
from griffin.experiments.__main__ import main
from griffin.experiments.speed import latency as experiment
from griffin.experiments.speed import plots
from griffin.model.accounting import Accounting
from tests.griffin.experiments.llama import install
from tests.tiny import COMMON, CONFIGS, tiny_model


def latency(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["griffin.experiments", "latency", *flags])
    try:
        return main()
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.fixture
def tiny_shape(tmp_path: Path) -> str:
    """A configuration with a context of 256 tokens that runs in milliseconds."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **COMMON, **CONFIGS["llama"]}))
    return str(path)


def test_tables_json_and_plot(
    tiny_shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lengths, every kind of row: tables on standard output, all figures in the file, and a picture."""
    result, plot = tmp_path / "new" / "latency.json", tmp_path / "new" / "latency.png"
    code = latency(
        monkeypatch, "--shape", tiny_shape, "--dtype", "float32", "--device", "cpu", "--lengths", "8+4", "20+6",
        "--sparsities", "0", "0.5", "0.75", "--rounds", "2", "--json", str(result), "--plot", str(plot),
    )  # fmt: skip
    report = json.loads(result.read_text())
    setting = report["settings"][1]
    by_name = {(row["name"], row["sparsity"]): row for row in setting["rows"]}
    griffin = by_name["GRIFFIN", 0.5]
    printed = capsys.readouterr().out

    assert code == 0
    assert list(by_name) == [
        ("full", 0), ("magnitude", 0.5), ("magnitude", 0.75), ("GRIFFIN", 0.5), ("GRIFFIN", 0.75), ("generate", 0),
    ]  # fmt: skip
    assert (report["dtype"], report["device"], report["random_weights"]) == ("float32", "cpu", True)
    assert report["shape"]["neurons_per_layer"] == 52
    assert report["generate_reads"] == "a copy of its own"
    assert min(report["bandwidth"].values()) > 0
    assert {"date", "versions", "threads", "device_name", "model"} <= set(report)
    assert (setting["prompt_tokens"], setting["tokens"], setting["rounds"]) == (20, 6, 2)
    assert len(griffin["runs"]) == 2
    assert all(run["seconds_per_token"] > 0 and run["selection_seconds"] > 0 for run in griffin["runs"])
    assert griffin["of_limit"] == pytest.approx(griffin["limit_seconds"] / griffin["seconds_per_token"]["median"])
    assert griffin["bytes_per_step"] < by_name["full", 0]["bytes_per_step"]
    assert griffin["speedup_over_generate"] > 0
    assert "8 + 4 tokens, 2 rounds" in printed
    assert "Table 3" in printed
    # The first line has the model's name, here a path of any length.
    assert max(map(len, printed.splitlines()[1:])) <= 120
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, the figures are one line after the tables."""
    flags = ["--prompt-tokens", "8", "--tokens", "3", "--rounds", "1", "--sparsities", "0.5", "--dtype", "float32"]
    assert latency(monkeypatch, *flags, "--statistics", "flocking") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in report["settings"][0]["rows"]}

    assert list(rows) == ["full", "GRIFFIN", "generate"]
    assert rows["GRIFFIN"]["active_parameters"] == 94_701_888
    assert report["model"] == "SmolLM2-135M-Instruct"


def test_generate_can_be_left_out_and_a_vector_plot_drawn(
    tiny_shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For models of which two copies do not fit. The SVG is well-formed, and its texts are text."""
    plot = tmp_path / "latency.svg"
    flags = ["--shape", tiny_shape, "--no-generate", "--quick", "--rounds", "1", "--plot", str(plot)]
    assert latency(monkeypatch, *flags) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    row = report["settings"][0]["rows"][0]

    assert "generate" not in {row["name"] for row in report["settings"][0]["rows"]}
    assert (row["speedup_over_generate"], report["generate_reads"]) == (None, None)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert "GRIFFIN 50 %" in plot.read_text()


def test_generate_shares_the_weights_when_two_copies_do_not_fit(
    tiny_shape: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output says so."""
    monkeypatch.setattr(experiment, "available_bytes", lambda device: 1)
    assert latency(monkeypatch, "--shape", tiny_shape, "--quick", "--rounds", "1", "--sparsities", "0.5") == 0
    printed = capsys.readouterr().out

    assert json.loads(printed.splitlines()[-1])["generate_reads"] == "the engine's weights"
    assert "generate reads the engine's weights" in printed


def test_beside_llama_cpp(
    tiny_shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp reads its own file, whose bytes are counted. Both programs' versions and settings are reported."""
    install(tmp_path / "package", monkeypatch, 128)
    file = tmp_path / "own.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((128, 32), np.float16))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    flags = ["--shape", tiny_shape, "--dtype", "float32", "--device", "cpu", "--no-generate", "--lengths", "8+4"]
    assert latency(monkeypatch, *flags, "--sparsities", "0.5", "--rounds", "2", "--llama-cpp", str(file)) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    rows = {(row["name"], row["sparsity"]): row for row in report["settings"][0]["rows"]}
    peer, full = rows["llama.cpp", 0], rows["full", 0]

    assert (report["llama_cpp"]["package"], report["llama_cpp"]["file"]) == ("9.9", "own.gguf")
    assert report["llama_cpp"]["weight_bytes"] == 128 * 32 * 2 + 64 * 32 * 4
    assert report["formats"] == "float32"
    # Its keys and values have 16 bits; the engine's have 32.
    kv_bytes = full["bytes_per_step"] - Accounting.of(tiny_model("llama")).weight_bytes
    assert peer["bytes_per_step"] == report["llama_cpp"]["weight_bytes"] + kv_bytes // 2
    assert peer["over_llama_cpp"] == {"median": 1, "lowest": 1, "highest": 1}
    assert full["over_llama_cpp"]["lowest"] <= full["over_llama_cpp"]["median"]
    assert "beside llama.cpp" in printed
    assert "llama.cpp: llama-cpp-python 9.9" in printed
    assert max(map(len, printed.splitlines()[1:-1])) <= 120


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "./nowhere"], "./nowhere"),
        (["--shape", "llama-2-7b", "--llama-cpp"], "--llama-cpp: --shape has no file; name one: --llama-cpp FILE"),
        (["--shape", "llama-9"], "one of: llama-2-7b, llama-2-13b"),
        (["--tokens", "2"], "--tokens: '2' is not a whole number of at least 3"),
        (["--rounds", "x"], "--rounds: 'x' is not a whole number"),
        (["--sparsities", "0.5", "1"], "--sparsities: '1' is not at least 0 and below 1"),
        (["--sparsities", "nan"], "--sparsities: 'nan'"),
        (["--lengths", "2048"], "--lengths: '2048' is not of the form P+G"),
        (["--lengths", "8+4", "--tokens", "4"], "--lengths: cannot go with"),
        (["--shape", "llama-2-13b", "--lengths", "2048+128", "2048+2049"], "2048+2049 tokens do not fit"),
        (["--plot", "figure.jpg"], "--plot: 'figure.jpg' ends neither in .svg nor in .png"),
        (["--plot", "nowhere.d/../.."], "--plot"),
        (["--json", "README.md/x.json"], "--json: cannot write 'README.md/x.json': "),
        (["--json", "."], "--json: '.' is a directory"),
        (["--statistics", "wanda"], "--statistics"),
        (["--minutes", "0"], "--minutes: '0' is not above 0"),
        (["--device", "cpu", "--compiled-generate"], "--compiled-generate"),
        (["--model", "a", "--shape", "b"], "--shape"),
        (["--dtype", "int3"], "int3"),
    ],
)
def test_errors_are_one_line(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback and no usage: what is wrong, and where."""
    assert latency(monkeypatch, *flags) != 0
    (line,) = capsys.readouterr().err.splitlines()

    assert line.startswith("griffin: ")
    assert said in line


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is missing, the error says how to install it."""
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    with pytest.raises(GriffinError, match=r"--plot: pictures need matplotlib.*pip install"):
        plots.require_plot()
