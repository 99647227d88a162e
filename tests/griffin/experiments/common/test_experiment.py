"""What a run of an experiment says about its picture."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from griffin.experiments.common import experiment, pictures
from griffin.experiments.common.experiment import Command, Experiment
from griffin.experiments.quality import fidelity, pareto
from griffin.experiments.speed.drafts import experiment as drafts


@pytest.mark.parametrize(("draw", "missed"), [(pareto.draw, True), (fidelity.draw, False), (drafts.draw, False)])
def test_without_matplotlib(
    draw: Callable[..., object] | None,
    missed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Only an experiment that draws a picture says that it is missing."""
    for module in (experiment, pictures):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    monkeypatch.setattr(experiment, "open_study", lambda _: SimpleNamespace(folder=tmp_path, facts=dict))
    own = SimpleNamespace(
        add_arguments=lambda parser: None, measure=lambda *_: {"rows": []}, tables=lambda found: [], draw=draw
    )
    command = Command("own", cast(Experiment, own))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([]))

    out = capsys.readouterr().out
    assert f"results: {tmp_path / 'own.json'}\n" in out
    assert ("no picture was drawn: pictures need matplotlib" in out) == missed
