"""The table of methods: a row for each name, and what a row says of itself."""

import pytest
import torch

from griffin.errors import InvalidRequest
from griffin.method.chooser import Chooser
from griffin.method.methods import METHODS
from griffin.method.preparation import Preparation
from griffin.model.families import feed_forwards
from griffin.request import METHOD_NAMES, Pruning
from tests.tiny import tiny_model


def test_every_name_has_a_row() -> None:
    """Under its own name."""
    assert tuple(METHODS) == METHOD_NAMES
    assert all(row.name == name for name, row in METHODS.items())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_what_needs_a_calibration_is_refused_without_one(method: str) -> None:
    """Where it is asked, and where requests are checked; and nothing else is."""
    row, preparation, pruning = METHODS[method], Preparation(), Pruning(0.5, method=method)

    assert preparation.allows(method) is not row.needs_calibration
    if row.needs_calibration:
        with pytest.raises(InvalidRequest, match=f"griffin.method: '{method[:-1]}.' needs this model to be calibrated"):
            preparation.require(pruning)
    else:
        preparation.require(pruning)


def test_what_a_choice_depends_on_tells_methods_apart() -> None:
    """A ledger of answers goes by it."""
    settings = [row.settings(Pruning(0.5, method=name)) for name, row in METHODS.items()]
    settings += [METHODS["griffin"].settings(Pruning(0.5, "sample")), METHODS["griffin+"].settings(
        Pruning(0.5, method="griffin+", parts=frozenset({"score"}))
    )]  # fmt: skip

    assert len({repr(each) for each in settings}) == len(settings)


def test_a_reused_set_is_not_prepared_for() -> None:
    """Whatever chose it the first time."""
    from tests.griffin.test_request import selection

    chooser = Chooser(feed_forwards(tiny_model("llama")), torch.device("cpu"))

    assert chooser.latest_tokens(Pruning(0.5, method="griffin+")) > 0
    assert chooser.latest_tokens(Pruning(0.5, method="griffin+", reuse=selection([0], [1], [2]))) == 0
