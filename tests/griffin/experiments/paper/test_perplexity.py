"""The increase in perplexity against GRIFFIN written by hand, and the claims from its windows."""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.experiments.common.experiment import conduct, defaults
from griffin.experiments.paper import perplexity
from griffin.neurons import Kept
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, random_ids, word_study
from tests.tiny import tiny_model


def arguments(**changes: object) -> argparse.Namespace:
    small = {"prompts": [6, 3], "generations": [7, 2], "windows": 2}
    return argparse.Namespace(**{**vars(defaults(perplexity)), **small, **changes})


@torch.no_grad()
def losses(model: PreTrainedModel, prompt: list[int], rest: list[int], sparsity: float) -> Tensor:
    """Losses token by token: the prompt through all neurons, the rest through the neurons with the highest s."""
    cache = DynamicCache(config=model.config)
    with oracle.recorded(model) as activations:
        model(torch.tensor([prompt]), past_key_values=cache)
    k = round((1 - sparsity) * 52)
    found = []
    with oracle.masked(model, Kept([oracle.statistic(z_TF).topk(k).indices for z_TF in activations])):
        for id, target in pairwise(rest):
            logits_V = model(torch.tensor([[id]]), past_key_values=cache).logits[0, -1]
            found.append(-logits_V.log_softmax(0)[target])
    return torch.stack(found)


def test_figures_and_picture(tmp_path: Path) -> None:
    """Windows of 6 + 7 + 1 tokens. The generation begins at the seventh token, for any prompt length."""
    text, model = random_ids(1, 40), tiny_model("llama")
    study = word_study(tmp_path, text, model=model)
    found = conduct("perplexity", perplexity, study, arguments())
    windows = [text[:14], text[-14:]]

    assert (found["prompts"], found["generations"], found["windows"]) == ([3, 6], [2, 7], 2)
    for row, length in enumerate((3, 6)):
        for number, (name, sparsity) in enumerate((("full", 0.0), ("griffin", 0.5))):
            # The BOS token counts as one of the prompt.
            each = [losses(model, [BOS, *w[7 - length : 6]], w[6:], sparsity) for w in windows]
            expected = [float(torch.cat([loss_T[:g] for loss_T in each]).mean().exp()) for g in (2, 7)]
            assert found[name][row] == pytest.approx(expected, rel=1e-4)
            for window, loss_T in enumerate(each):
                sums = [float(loss_T[:g].sum()) for g in (2, 7)]
                assert found["losses"][window][number][row] == pytest.approx(sums, rel=1e-4)
    assert (tmp_path / "tiny" / "perplexity.svg").stat().st_size > 0


def test_nothing_removed_is_no_increase(tmp_path: Path) -> None:
    """At sparsity 0 it is the full model."""
    found = perplexity.measure(word_study(tmp_path, random_ids(1, 40)), arguments(sparsity=0.0))

    assert perplexity.increases(found) == [[0.0, 0.0], [0.0, 0.0]]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Each prompt in each window is kept. Another sparsity is another question."""
    study, path = word_study(tmp_path, random_ids(1, 40)), tmp_path / "tiny" / "ledger.jsonl"
    once = perplexity.measure(study, arguments())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n")
    resumed = word_study(tmp_path, random_ids(1, 40))
    again = perplexity.measure(resumed, arguments())
    after = path.read_text().splitlines()
    perplexity.measure(resumed, arguments(sparsity=0.9, windows=1))

    assert len(lines) == len(after) == 4
    assert again == once
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": [200], "generations": [57]}, "200 + 57 tokens, but the context of this model has 256, the most"),
        ({"prompts": [3], "generations": [297]}, "3 + 297 tokens, but the context of this model has 256, the most"),
        ({"windows": 22}, "--windows: 22 times 14 tokens of 'wikitext', which has only 300; the most is 21"),
    ],
)
def test_lengths_that_do_not_fit(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    """One line names the flag and the largest value."""
    with pytest.raises(ValueError, match=r"^--") as error:
        perplexity.measure(word_study(tmp_path, random_ids(1, 300)), arguments(**changes))

    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    """The last of 40 tokens is only predicted."""
    study = word_study(tmp_path, random_ids(1, 40))
    with pytest.raises(ValueError, match=r"3 \+ 37 tokens, but the text but for its last token has 39, the most"):
        perplexity.measure(study, arguments(prompts=[3], generations=[37], windows=1))


def found_with(*windows: list[list[float]], prompts: Sequence[int] = (8, 16)) -> dict[str, Any]:
    """Results whose windows add these values to a perplexity of 10, for each prompt and for 4 and 32 tokens."""
    losses = [
        [[[g * math.log(10 + add) for g, add in zip((4, 32), row, strict=True)] for row in rows] for rows in both]
        for both in (([[0.0, 0.0]] * len(window), window) for window in windows)
    ]
    first = windows[0]
    return {
        "prompts": list(prompts),
        "generations": [4, 32],
        "windows": len(windows),
        "sparsity": 0.5,
        "full": [[10.0, 10.0]] * len(first),
        "griffin": [[10 + value for value in row] for row in first],
        "losses": losses,
    }


def test_what_a_doubling_adds() -> None:
    """The prompt doubles once, the generation three times: -1 and 6 / 3, then +2 and 0."""
    found = found_with([[2.0, 8.0], [1.0, 7.0]], [[1.0, 1.0], [3.0, 3.0]])

    assert perplexity.doublings(found, "prompts").tolist() == pytest.approx([-1.0, 2.0])
    assert perplexity.doublings(found, "generations").tolist() == pytest.approx([2.0, 0.0])


def test_all_lengths_count() -> None:
    """Increases of 3, 1, 2 after 8, 16, 32 tokens: the nearest line falls by (3 - 2) / 2 for each doubling."""
    found = found_with([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]], prompts=(8, 16, 32))

    assert perplexity.doublings(found, "prompts").tolist() == pytest.approx([-0.5])


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ([-1.0, -2.0, -1.0, -2.0], True),
        ([1.0, 2.0, 1.0, 2.0], False),
        ([-1.0, -2.0, -1.0, 2.0], None),
        ([-1.0, -1.0, -1.0], None),
        ([0.0, 0.0, 0.0, 0.0], None),
    ],
)
def test_the_windows_decide_on_prompts(changes: list[float], holds: bool | None) -> None:
    """The third case has a mean of -0.5 and a standard error of 0.87. Three windows are always too few."""
    (claim, _) = perplexity.claims(found_with(*([[4.0, 4.0], [4 + change, 4 + change]] for change in changes)))

    assert claim.holds is holds


@pytest.mark.parametrize(
    ("changes", "holds"), [([3.0, 6.0, 3.0, 6.0], True), ([-3.0] * 4, False), ([3.0, -3.0, 3.0, -3.0], None)]
)
def test_the_windows_decide_on_generations(changes: list[float], holds: bool | None) -> None:
    """A shorter generation is closer: the increase grows with its length."""
    (_, claim) = perplexity.claims(found_with(*([[4.0, 4 + change]] * 2 for change in changes)))

    assert claim.holds is holds


def test_nothing_to_compare() -> None:
    """One length has no trend. Results without the windows' losses cannot tell either."""
    single = found_with(*[[[2.0, 4.0]]] * 4, prompts=(8,))
    old = found_with(*[[[2.0, 4.0], [1.0, 3.0]]] * 4)
    del old["losses"]

    assert [claim.holds for claim in perplexity.claims(single)] == [None, True]
    assert "One length shows no trend." in perplexity.claims(single)[0].here
    assert [claim.holds for claim in perplexity.claims(old)] == [None, None]
    assert "The losses of 0 windows are too few for a trend; 4 are needed." in perplexity.claims(old)[0].here


def test_claims_and_tables_give_the_figures() -> None:
    """Trends with standard errors, the first and last value, and a row for each prompt length."""
    windows = [[[2.0, 4.0], [2 + change, 4 + change]] for change in (-1.0, -2.0, -1.0, -2.0)]
    found = found_with(*windows)
    closer, unclear = (
        perplexity.claims(found)[0],
        perplexity.claims(found_with(*windows[:3], [[4.0, 4.0], [9.0, 9.0]]))[0],
    )
    increase, full = perplexity.tables(found)

    # Each is 0.5 from the mean: sqrt(4 * 0.25 / 3) / sqrt(4).
    assert "Each doubling of the prompt length adds -1.500 to the increase in perplexity, with a" in closer.here
    assert "a standard error of 0.289 over 4 windows. The increase over all windows, with a prompt of 8" in closer.here
    assert "of 8 and of 16 tokens: 2.00 and 1.00 (4 generated), 4.00 and 3.00 (32" in closer.here
    assert "windows. This is at most two standard errors, so it may be chance." in unclear.here
    assert increase.caption.startswith("Increase in perplexity over the full model at 50 % FF sparsity")
    assert increase.rows == [("8", "2.00", "4.00"), ("16", "1.00", "3.00")]
    assert full.rows == [("8", "10.00", "10.00"), ("16", "10.00", "10.00")]
