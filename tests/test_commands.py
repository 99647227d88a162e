"""Every command in the documents is run: here, or by the file in ``ELSEWHERE``. Other commands say what they need."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer

import pytest

from griffin.experiments.__main__ import command_line
from tests.server import tiny_checkpoint
from tests.server.process import START_S, running

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")])
ADDRESS = "http://127.0.0.1:8000"
# The comment of a command that no test machine can run.
NEEDS = re.compile(r"# needs (?:a GPU|a cluster|Docker)")
# How a command begins: the file that runs it, or runs the same with a small model, and the words that do so.
ELSEWHERE = {
    "make test": (".ci/run", "exec make test"),
    "serve run deploy.ray.app:application": ("tests/deploy/test_ray.py", "documented_arguments"),
    "lm-eval run": ("tests/clients/test_lm_eval.py", "local-completions"),
    "python -m griffin.experiments report": ("tests/griffin/experiments/report/test_report.py", "make_report(flags("),
    "python -m griffin.experiments pareto": ("tests/griffin/experiments/quality/test_beyond.py", 'conduct("pareto"'),
    "python -m griffin.experiments drift": ("tests/griffin/experiments/quality/test_beyond.py", 'conduct("drift"'),
    "python -m griffin.experiments acceptance": (
        "tests/griffin/experiments/quality/test_beyond.py",
        'conduct("acceptance"',
    ),
    "python -m griffin.experiments pace": ("tests/griffin/experiments/quality/test_beyond.py", 'conduct("pace"'),
    "python -m griffin tune": ("tests/griffin/experiments/tune/test_tune.py", 'tune.run(command("--prompts"'),
    "pip install -c deploy/constraints.txt -e '.[experiments]'": ("Makefile", "-c $(CONSTRAINTS) -e '.[experiments]'"),
    # `dev` includes this extra.
    "pip install -c deploy/constraints.txt -e '.[ray]'": ("Makefile", "-c $(CONSTRAINTS) -e '.[dev]'"),
}


@dataclass(frozen=True)
class Command:
    document: Path
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {' '.join(self.text.split())[:60]}"

    @property
    def is_run_elsewhere(self) -> bool:
        return any(self.text.startswith(start) for start in ELSEWHERE)


def complete(text: str) -> bool:
    """Whether a shell would run this text, instead of waiting for another line."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


def commands(document: Path) -> Iterator[Command]:
    """The commands of a document's console blocks. Other lines of a block are output."""
    for block in re.findall(r"```console\n(.*?)```", document.read_text(), re.DOTALL):
        text = ""
        for line in block.splitlines():
            if text:
                text += f"\n{line}"
            elif line.startswith("$ "):
                text = line.removeprefix("$ ")
            if text and complete(text):
                yield Command(document, text)
                text = ""
        assert not text, f"{document}: {text}"


def blocks(document: Path) -> list[str]:
    """The Python programs in a document."""
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


ALL = [command for document in DOCUMENTS for command in commands(document)]
HERE = [command for command in ALL if not NEEDS.search(command.text) and not command.is_run_elsewhere]
SERVES = [command for command in HERE if command.text.startswith("make serve")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as server:
        yield server.url


@pytest.fixture(scope="module")
def quick_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of a tiny model, for commands that send it many requests."""
    folder = tiny_checkpoint.write(tmp_path_factory.mktemp("tiny"))
    with running("--model", str(folder), "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        yield server.url


def run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a text with bash in this folder; this environment's programs come first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_commands_were_found() -> None:
    """The documents still have the commands of ``ELSEWHERE``, and each file there still runs its command."""
    assert len(HERE) > 4
    for start, (where, words) in ELSEWHERE.items():
        assert any(command.text.startswith(start) for command in ALL), f"no document has {start} any more"
        assert words in (ROOT / where).read_text(), f"{where} does not run {start} any more"


@pytest.mark.parametrize("command", [command for command in HERE if command not in SERVES], ids=str)
def test_commands_work(command: Command, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The command works as it is written; only the server's address is replaced."""
    text = command.text
    if ADDRESS in text:
        text = text.replace(ADDRESS, request.getfixturevalue("quick_url" if "loadtest" in text else "url"))
    done = run(text, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert '"error":{' not in done.stdout


def test_the_experiments_that_were_run_can_be_run_again() -> None:
    """The command line still accepts each command. Running them would take minutes to hours each."""
    text = (ROOT / "docs/experiments.md").read_text()
    lines = re.findall(r"```sh\npython -m griffin.experiments (.*)\n```", text)

    assert len(lines) > 10
    for line in lines:
        assert command_line().parse_args(shlex.split(line)).name == line.split()[0]


def test_make_serve_serves() -> None:
    """`make serve` starts a server. `make test`, the README's other command, runs this test."""
    assert SERVES
    command = ["make", "serve", f"VENV={sys.prefix}", "ARGS=--port 0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        end = partial(os.killpg, process.pid, signal.SIGTERM)
        timer = Timer(START_S, end)
        timer.start()
        said: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("curl "):
                break
        timer.cancel()
        with suppress(ProcessLookupError):
            end()
    assert said[-1].startswith("curl "), "".join(said)


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if ADDRESS in "".join(blocks(d))], ids=lambda d: str(d.relative_to(ROOT))
)
def test_programs_in_python_work(document: Path, url: str, tmp_path: Path) -> None:
    """The documents' Python programs that talk to a server run without an error."""
    for number, block in enumerate(blocks(document)):
        if ADDRESS in block:
            file = tmp_path / f"{number}.py"
            file.write_text(block.replace(ADDRESS, url))
            done = run(f"python {file}", tmp_path)

            assert done.returncode == 0, done.stderr
            assert re.search(r" \d+\n$", done.stdout), done.stdout
