"""A report runs the experiments that are asked for, keeps all results if one fails, and is one page."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from griffin.errors import GriffinError, LoadError
from griffin.experiments.common.pictures import new_figure, panels
from griffin.experiments.common.results import Claim, Table, escaped
from griffin.experiments.common.study import Study, folder_name
from griffin.experiments.report.command import add_arguments, command, make_report, settings
from griffin.experiments.report.document import Outcome, Section, Subject, document
from griffin.model.loading import Checkpoint
from tests.tiny import tiny_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Echo:
    """An experiment that takes no time. It keeps the arguments of each run."""

    __doc__ = "An echo."
    TITLE = "Echo (Figure 0)"
    SEE = "A straight line."
    QUICK: dict[str, object] = {"words": 2}  # noqa: RUF012  # as a module has it

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.computed = error, 0
        self.given: list[argparse.Namespace] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--words", type=int, default=9)
        parser.add_argument("--limit", type=int)

    def measure(self, study: Study, arguments: argparse.Namespace) -> dict[str, Any]:
        self.given.append(arguments)
        value = study.ledger.once({"echo": arguments.words}, self._compute)
        if self.error:
            raise self.error
        return {"value": value}

    def _compute(self) -> int:
        self.computed += 1
        return 7

    def tables(self, found: dict[str, Any]) -> list[Table]:
        return [Table(["echo", "value"], [["once", str(found["value"])]])]

    def draw(self, found: dict[str, Any]) -> "Figure":
        figure = new_figure(2, 1)
        panels(figure, 1, 1)[0].plot([0, found["value"]])
        return figure

    def claims(self, found: dict[str, Any]) -> list[Claim]:
        return [Claim("Echoes are seven.", found["value"] == 7, f"It was {found['value']}.")]


def flags(tmp_path: Path, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--out", str(tmp_path), *given])


def opened(arguments: argparse.Namespace) -> Study:
    """A tiny model, whatever its name is. Only the name 'absent' fails."""
    if arguments.model == "absent":
        raise LoadError("'absent' is neither here nor there")
    tokenizer: Any = SimpleNamespace(get_vocab=dict)
    name = arguments.model.rpartition("/")[2]
    return Study(Checkpoint(name, tiny_model("llama"), tokenizer), arguments.data, arguments.out / folder_name(name))


def test_two_models_and_two_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model has its own folder. Page and Markdown show both models, in the order of the flag."""
    echo, other = Echo(), Echo()
    make_report(flags(tmp_path, "--model", "a", "b/c"), {"echo": echo, "other": other}, opened)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    written = capsys.readouterr()

    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "echo.json", "echo.svg", "ledger.jsonl", "other.json", "other.svg",
    ]  # fmt: skip
    assert json.loads((tmp_path / "c" / "echo.json").read_text())["model"] == "c"
    assert [arguments.model for arguments in echo.given] == ["a", "b/c"]
    assert text.startswith("# GRIFFIN on a, c\n")
    assert text.index("## Verdict") < text.index("## What was run") < text.index("## Echo (Figure 0)")
    assert "(a/echo.svg)" in text
    assert "(c/other.svg)" in text
    assert all((tmp_path / name).exists() for name in ("a/echo.svg", "c/other.svg"))
    assert "| Echoes are seven. | c | yes | It was 7. |" in text
    assert page.count("data:image/svg+xml;base64,") == 4
    assert written.err.splitlines() == [
        "a: echo (1 of 2)", "a: other (2 of 2)", "c: echo (1 of 2)", "c: other (2 of 2)",
    ]  # fmt: skip
    assert str(tmp_path / "report.html") in written.out


def test_the_report_says_what_was_run(tmp_path: Path) -> None:
    """It names the model, its size, the hardware, the versions and the command that makes the report again."""
    make_report(flags(tmp_path, "--model", "a", "--quick"), {"echo": Echo()}, opened)
    text = (tmp_path / "report.md").read_text()

    assert "| architecture | llama |" in text
    assert "| FF neurons | 3 layers of 52 |" in text
    assert "| dtype | float32 |" in text
    assert torch.__version__ in text
    assert f"python -m griffin.experiments report --model a --out {tmp_path} --quick\n" in text
    assert "A first look (--quick)" in text


@pytest.mark.parametrize(
    "error",
    [GriffinError("--data: no such file\nand more"), ValueError("--words: too few"), torch.OutOfMemoryError("full")],
)
def test_one_failure_costs_no_other(tmp_path: Path, error: Exception) -> None:
    """The page and the error of the run name it in one line. The results before and after it are kept."""
    experiments = {"first": Echo(), "broken": Echo(error), "last": Echo()}
    line = "out of memory" if "full" in str(error) else str(error).splitlines()[0]
    with pytest.raises(GriffinError) as caught:
        make_report(flags(tmp_path, "--model", "a"), experiments, opened)
    text = (tmp_path / "report.md").read_text()

    assert str(caught.value).startswith(f"a, broken: {line}")
    assert len(str(caught.value).splitlines()) == 1
    assert f"**Failed**: a: {line}" in text
    assert "(a/first.svg)" in text
    assert "(a/last.svg)" in text
    assert "(a/broken.svg)" not in text
    assert "and more" not in text


def test_a_bug_is_not_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the program is logged with its traceback, and the other results are kept."""
    experiments = {"echo": Echo(RuntimeError("shapes do not match")), "other": Echo()}
    with pytest.raises(GriffinError, match="a, echo: shapes do not match"):
        make_report(flags(tmp_path, "--model", "a", "a"), experiments, opened)

    assert "in measure" in caplog.text
    assert "It was 7." in (tmp_path / "report.md").read_text()


def test_a_model_that_does_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are reported. Each failure is one line, and the error says how many there are."""
    experiments = {"echo": Echo(), "broken": Echo(ValueError("no"))}
    with pytest.raises(GriffinError, match="2 parts of the report failed"):
        make_report(flags(tmp_path, "--model", "absent", "b"), experiments, opened)
    text = (tmp_path / "report.md").read_text()

    assert "**Failed**: absent: 'absent' is neither here nor there" in text
    assert "(b/echo.svg)" in text
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "griffin: absent: 'absent' is neither here nor there", "griffin: b, broken: no",
    ]  # fmt: skip


def test_no_model_means_no_report(tmp_path: Path) -> None:
    """If no model loads, no page is written."""
    with pytest.raises(GriffinError, match="neither here nor there"):
        make_report(flags(tmp_path, "--model", "absent"), {"echo": Echo()}, opened)

    assert list(tmp_path.iterdir()) == []


def test_models_of_one_name(tmp_path: Path) -> None:
    """A second model with the same name would overwrite results, so it is refused."""
    with pytest.raises(GriffinError, match="y/a: another model is called a too"):
        make_report(flags(tmp_path, "--model", "x/a", "y/a"), {"echo": Echo()}, opened)


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """A second run repeats no work that a stopped run had done."""
    first, second = Echo(KeyboardInterrupt()), Echo()  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        make_report(flags(tmp_path, "--model", "a"), {"echo": first}, opened)
    make_report(flags(tmp_path, "--model", "a"), {"echo": second}, opened)

    assert (first.computed, second.computed) == (1, 0)
    assert "It was 7." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "words", "limit"),
    [([], 9, None), (["--quick"], 2, None), (["--limit", "5"], 9, 5), (["--quick", "--limit", "5"], 2, 5)],
)
def test_flags_of_the_experiments(tmp_path: Path, given: list[str], words: int, limit: int | None) -> None:
    """They have their own defaults, changed by --quick and --limit, and the report's flags beside them."""
    found = settings(Echo(), flags(tmp_path, *given))

    assert (found.words, found.limit, found.out) == (words, limit, tmp_path)


def test_the_reports_flags_win(tmp_path: Path) -> None:
    """An experiment with its own --model gets the report's value."""
    echo = Echo()
    plain = echo.add_arguments

    def with_model(parser: argparse.ArgumentParser) -> None:
        plain(parser)
        parser.add_argument("--model", default="another")

    echo.add_arguments = with_model  # type: ignore[method-assign]
    arguments = argparse.Namespace(**{**vars(flags(tmp_path)), "model": "this"})

    assert settings(echo, arguments).model == "this"


def test_data_must_be_there(tmp_path: Path) -> None:
    """The error comes before any model is loaded."""
    never: Callable[[argparse.Namespace], Study] = pytest.fail
    with pytest.raises(ValueError, match=r"--data: '.*nowhere' is not a directory"):
        make_report(flags(tmp_path, "--data", str(tmp_path / "nowhere")), {"echo": Echo()}, never)


def test_the_command_that_makes_the_report_again(tmp_path: Path) -> None:
    """It has only the flags without their defaults, quoted for a shell."""
    given = ["--model", "a", "my model", "--data", "d", "--dtype", "float32", "--limit", "5", "--quick"]
    again = command(flags(tmp_path, *given)).replace(str(tmp_path), "OUT")

    assert again == (
        "python -m griffin.experiments report --model a 'my model' --dtype float32 --data d --out OUT --limit 5 --quick"
    )


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "layers": 2, "neurons_per_layer": 1024, "parameters": 6_738_000_000, "dtype": "float16",
        "device_name": "L40", "data": "hub", "date": "2024-04-01T10:00:00+00:00", "versions": {"torch": "2.13"},
        **changes,
    }  # fmt: skip


def test_names_are_escaped_everywhere() -> None:
    """The name of a model, an error and the folder of a picture are not read as markup."""
    name = "<script>alert(1)</script>|*a*"
    outcome = Outcome(
        {**facts(), "model": "a", "command": "python x"}, [], [Claim("It *is*.", None, "<b>")], "a b/echo.svg"
    )
    subject = Subject(name, facts(), {"echo": outcome}, {"other": "no <i>file</i>"})
    sections = [Section("echo", "Echo", "See <u>."), Section("other", "Other", "See.")]
    text = document([subject, Subject("b", facts())], sections, "command `x` ```")
    outside, _, rest = text.partition("````sh\n")

    assert "<script>" not in text.replace("\\<", "")
    assert all(f"\n{tag}" not in text and f" {tag}" not in text for tag in ("<b>", "<i>", "<u>"))
    assert "(a%20b/echo.svg)" in text
    assert rest.startswith("command `x` ```\n````\n")
    assert "cannot tell" in rest
    assert "6.74 billion" in outside


def test_one_model_needs_no_name_in_each_section() -> None:
    """Its claims are a table of three columns, and its sections have no headings for models."""
    outcome = Outcome({**facts(), "model": "a", "command": "python x"}, [], [Claim("So.", False, "Not so.")], None)
    text = document([Subject("a", facts(), {"echo": outcome})], [Section("echo", "Echo", "See.")], "c")

    assert "| So. | no | Not so. |" in text
    assert "###" not in text


def test_of_several_models_the_verdicts_come_first() -> None:
    """Each model has one line of verdict, before the details of any model."""
    outcome = Outcome({**facts(), "model": "a", "command": "python x"}, [], [], None)
    subjects = [Subject("a", facts(), {"echo": outcome}), Subject("b", failures={"model": "not there"})]
    text = document(subjects, [Section("echo", "Echo", "See.")], "c")
    verdict = text.partition("## Verdict\n\n")[2]

    assert verdict.startswith(
        "- **a**: No task was run, so this report cannot judge quality.\n- **b**: nothing was measured.\n\n### a\n"
    )
    assert "**Failed**: b: not there" in verdict


def test_earlier_results_can_be_kept(tmp_path: Path) -> None:
    """With --keep they are shown as they are. Missing, broken and other weights' results are measured."""
    echo, other, again = Echo(), Echo(), flags(tmp_path, "--model", "a", "--keep")
    make_report(flags(tmp_path, "--model", "a"), {"echo": echo}, opened)
    make_report(again, {"echo": echo, "other": other}, opened)
    assert (len(echo.given), len(other.given)) == (1, 1)
    assert (tmp_path / "report.md").read_text().count("It was 7.") == 2

    path = tmp_path / "a" / "echo.json"
    for broken in (path.read_text()[:-9], json.dumps({**json.loads(path.read_text()), "identity": "others"}), "[]"):
        path.write_text(broken)
        make_report(again, {"echo": echo}, opened)
        assert json.loads(path.read_text())["value"] == 7
    assert len(echo.given) == 4


def test_each_section_has_its_command(tmp_path: Path) -> None:
    """The command has the flags whose values are not their defaults."""
    make_report(flags(tmp_path, "--model", "a", "--quick", "--limit", "3"), {"echo": Echo()}, opened)

    line = "python -m griffin.experiments echo --model a --words 2 --limit 3"
    text = (tmp_path / "report.md").read_text()
    assert f"```sh\n{line}\n```" in text
    found = json.loads((tmp_path / "a" / "echo.json").read_text())
    assert f"\na, float32, {escaped(found['device_name'])}, data: hub, {found['date'][:10]}" in text
