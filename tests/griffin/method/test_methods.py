"""The table of methods: a row for each name, and what the rows say."""

import pytest
import torch

from griffin.errors import InvalidRequest
from griffin.method.chooser import Chooser
from griffin.method.methods import METHODS
from griffin.method.preparation import Preparation
from griffin.model.families import feed_forwards
from griffin.neurons import Kept, Selection
from griffin.request import METHOD_NAMES, MethodName, Pruning
from tests.tiny import tiny_model


def test_every_name_has_a_row() -> None:
    """Each row has its own name."""
    assert tuple(METHODS) == METHOD_NAMES
    assert all(row.name == name for name, row in METHODS.items())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_what_a_streamed_model_cannot_do_is_refused(method: MethodName) -> None:
    """``allows`` and ``require`` agree. A model that is not streamed refuses nothing."""
    pruning = Pruning(0.5, method=method)
    here, streamed = Preparation(), Preparation(streamed=True)

    here.require(pruning)
    assert here.allows(method)
    assert streamed.allows(method) is (method == "griffin")
    if method == "griffin":
        streamed.require(pruning)
    else:
        with pytest.raises(InvalidRequest, match=r"griffin.method: 'griffin\+'.*--ff-offload.*use method 'griffin'"):
            streamed.require(pruning)


def test_what_a_choice_depends_on_tells_methods_apart() -> None:
    """Experiments store answers under these settings, so other choices need other settings."""
    settings = [row.settings(Pruning(0.5, method=name)) for name, row in METHODS.items()]
    settings += [METHODS["griffin"].settings(Pruning(0.5, "sample"))]
    settings += [METHODS["griffin"].settings(Pruning(0.5, statistic="magnitude"))]

    assert len({repr(each) for each in settings}) == len(settings)


def test_a_reused_choice_needs_no_activations() -> None:
    """Whichever method made it. A dense request needs none either."""
    chooser = Chooser(feed_forwards(tiny_model("llama")), torch.device("cpu"))
    chosen = Kept([torch.tensor([number], dtype=torch.int32) for number in range(3)])
    reused = Pruning(0.5, method="griffin+", reuse=Selection(0.0, "name", 3, chosen))

    assert chooser.latest_tokens(Pruning(0.5, method="griffin+")) > 0
    assert chooser.latest_tokens(Pruning(0.5)) == 0
    assert chooser.latest_tokens(Pruning(method="griffin+")) == 0
    assert chooser.latest_tokens(reused) == 0
