"""What a request may choose. One function decides whether it removes any neuron, also when the sparsity rounds to 0."""

import pytest
import torch

from griffin import Engine, Pruning, Sampling, Scoring, Selection, Verification
from griffin.engine.prefixes import PrefixStore
from griffin.experiments.common.teacher import Teacher
from griffin.method.chooser import Chooser
from griffin.model.families import feed_forwards
from griffin.neurons import Kept
from griffin.request import METHOD_FIELDS, METHOD_NAMES, Auto
from server.metrics import Metrics
from server.work.job import Ask
from server.work.shadow import Shadows
from tests.tiny import tiny_model

# This would remove less than half a neuron of 52, so all 52 stay.
ROUNDS = 0.009
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]


def selection(*layers: list[int]) -> Selection:
    return Selection(0.0, "name", 3, Kept([torch.tensor(layer, dtype=torch.int32) for layer in layers]))


@pytest.mark.parametrize(
    ("pruning", "width", "prunes"),
    [
        (Pruning(), 52, False),
        (Pruning(0.5), 52, True),
        (Pruning(ROUNDS), 52, False),
        (Pruning(ROUNDS), 100, True),
        (Pruning(0.5), 1, False),
        (Pruning(auto=Auto(0.1)), 52, True),
        (Pruning(reuse=selection([0, 1, 2], [0, 1, 2])), 3, False),
        (Pruning(reuse=selection([0, 1, 2], [0, 1])), 3, True),
        (Pruning(0.5, reuse=selection([0, 1, 2], [0, 1, 2])), 3, False),
    ],
)
def test_whether_any_neuron_is_left_out(pruning: Pruning, width: int, prunes: bool) -> None:
    """The number of kept neurons decides, not the sparsity that was asked for."""
    assert pruning.prunes(width) is prunes


def test_a_sparsity_that_rounds_to_all_neurons_is_dense_everywhere() -> None:
    """With every method, such a request is not prepared, chosen for, verified, compared or reported."""
    model = tiny_model("llama")
    engine = Engine(model, prefill_chunk=8, prefixes=PrefixStore(2**20, 8))
    chooser = Chooser(feed_forwards(model), model.device)
    teacher = Teacher(model)
    teacher.begin_with(PROMPT)
    sampling = Sampling(max_tokens=4, temperature=0, ignore_eos=True)
    dense = [token.id for token in engine.generate(PROMPT, sampling)]

    for method in METHOD_NAMES:
        pruning = Pruning(ROUNDS, method=method)
        assert chooser.latest_tokens(pruning) == 0
        assert teacher.choose(pruning) is None
        assert not Shadows(1.0, Metrics(), "m").draws(Ask([1], [], pruning), engine.accounting.width)
        with engine.read(PROMPT, pruning, Scoring()) as read:
            assert read.selection is None
            tokens = list(read.generate(sampling, verification=Verification("lossless", "pruned")))
            assert read.compare([token.id for token in tokens]) is None
        assert [token.id for token in tokens] == dense
        assert all(token.selection is None and token.verified is None for token in tokens)
        with engine.read(PROMPT, pruning) as read:
            # All whole chunks are reused: no method needs the latest tokens again.
            assert read.cached_tokens == 16


def test_every_method_says_which_fields_it_takes() -> None:
    """A method refuses a field that it does not take; the error names the method."""
    assert tuple(METHOD_FIELDS) == METHOD_NAMES
    for method, fields in METHOD_FIELDS.items():
        for name, value in (("selection", "sample"), ("statistic", "magnitude")):
            if name in fields:
                Pruning(0.5, method=method, **{name: value})
            else:
                with pytest.raises(ValueError, match=f"method {method[:-1]}. chooses by itself"):
                    Pruning(0.5, method=method, **{name: value})


@pytest.mark.parametrize(
    ("pruning", "follows"),
    [
        (Pruning(0.5), True),
        (Pruning(0.5, method="griffin+"), True),
        (Pruning(0.5, statistic="magnitude"), False),
        (Pruning(0.5, selection="sample"), False),
        (Pruning(0.5, reuse=selection([0], [1])), False),
    ],
)
def test_which_neurons_follow_the_text(pruning: Pruning, follows: bool) -> None:
    """Only neurons that follow the text can be chosen again later in it."""
    assert pruning.follows_text is follows
