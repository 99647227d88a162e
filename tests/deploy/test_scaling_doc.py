"""The tables in docs/scaling.md are what its programs print."""

import contextlib
import io
import re
from pathlib import Path

DOCUMENT = (Path(__file__).parents[2] / "docs/scaling.md").read_text()


def test_the_tables_are_what_the_programs_print() -> None:
    """The programs take sizes from the models, so a change shows in this test."""
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, object] = {"__name__": "scaling"}

    assert len(programs) == 2
    for program in programs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, "docs/scaling.md", "exec"), names)
        assert printed.getvalue() in DOCUMENT


def test_the_waits_in_the_text_are_the_formulas() -> None:
    """The mean wait of M/D/1 is u / (2 (1 - u)) service times at utilisation u."""
    stated = re.search(r"on average: (.*?)\. If", DOCUMENT, re.DOTALL)
    assert stated
    waits = re.findall(r"([\d.]+) S at (?:u = )?([\d.]+)", stated[1])

    assert len(waits) == 4
    assert all(abs(float(wait) - float(u) / (2 * (1 - float(u)))) < 0.05 for wait, u in waits)
