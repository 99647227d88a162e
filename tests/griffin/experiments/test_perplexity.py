"""The increase in perplexity against GRIFFIN written out by hand, and what is concluded from its ends."""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from griffin.experiments import perplexity
from griffin.experiments.experiment import conduct, defaults
from tests.griffin import oracle
from tests.griffin.experiments.words import BOS, random_ids, word_study
from tests.tiny import tiny_model


def arguments(**changes: object) -> argparse.Namespace:
    small = {"prompts": [6, 3], "generations": [7, 2], "windows": 2}
    return argparse.Namespace(**{**vars(defaults(perplexity)), **small, **changes})


@torch.no_grad()
def losses(model: PreTrainedModel, prompt: list[int], rest: list[int], sparsity: float) -> Tensor:
    """One token after the other: the prompt through all neurons, those behind it through the highest of s."""
    cache = DynamicCache(config=model.config)
    with oracle.recorded(model) as activations:
        model(torch.tensor([prompt]), past_key_values=cache)
    k = round((1 - sparsity) * 52)
    found = []
    with oracle.masked(model, [oracle.statistic(z_TF).topk(k).indices for z_TF in activations]):
        for id, target in pairwise(rest):
            logits_V = model(torch.tensor([[id]]), past_key_values=cache).logits[0, -1]
            found.append(-logits_V.log_softmax(0)[target])
    return torch.stack(found)


def test_figures_and_picture(tmp_path: Path) -> None:
    """Windows of 6 + 7 + 1 tokens; what is generated begins at their seventh, whatever the prompt's length."""
    text, model = random_ids(1, 40), tiny_model("llama")
    study = word_study(tmp_path, text, model=model)
    found = conduct("perplexity", perplexity, study, arguments())
    windows = [text[:14], text[-14:]]

    assert (found["prompts"], found["generations"], found["windows"]) == ([3, 6], [2, 7], 2)
    for row, length in enumerate((3, 6)):
        for name, sparsity in (("full", 0.0), ("griffin", 0.5)):
            # A BOS token is one of the prompt's.
            each = [losses(model, [BOS, *w[7 - length : 6]], w[6:], sparsity) for w in windows]
            expected = [float(torch.cat([loss_T[:g] for loss_T in each]).mean().exp()) for g in (2, 7)]
            assert found[name][row] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "tiny" / "perplexity.svg").stat().st_size > 0


def test_nothing_removed_is_no_increase(tmp_path: Path) -> None:
    """At sparsity 0 it is the full model."""
    found = perplexity.measure(word_study(tmp_path, random_ids(1, 40)), arguments(sparsity=0.0))

    assert perplexity.increases(found) == [[0.0, 0.0], [0.0, 0.0]]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Each prompt in each window is kept; another sparsity is another question."""
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
    """One line that names the flag and the most."""
    with pytest.raises(ValueError, match=r"^--") as error:
        perplexity.measure(word_study(tmp_path, random_ids(1, 300)), arguments(**changes))

    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    """Of 40 tokens the last one is only predicted."""
    study = word_study(tmp_path, random_ids(1, 40))
    with pytest.raises(ValueError, match=r"3 \+ 37 tokens, but the text but for its last token has 39, the most"):
        perplexity.measure(study, arguments(prompts=[3], generations=[37], windows=1))


def found_with(increase: list[list[float]]) -> dict[str, Any]:
    return {
        "prompts": [8, 16][: len(increase)],
        "generations": [4, 32],
        "windows": 1,
        "sparsity": 0.5,
        "full": [[10.0, 10.0]] * len(increase),
        "griffin": [[10 + value for value in row] for row in increase],
    }


@pytest.mark.parametrize(
    ("increase", "holds"),
    [
        ([[2.0, 4.0], [1.0, 3.0]], [True, True]),
        ([[1.0, 1.0], [2.0, 2.0]], [False, False]),
        ([[2.0, 3.0], [1.0, 4.0]], [None, True]),
        ([[2.0, 4.0]], [None, True]),
    ],
)
def test_ends_are_compared(increase: list[list[float]], holds: list[bool | None]) -> None:
    """All agree, none does, or they disagree; a single length has no ends."""
    assert [claim.holds for claim in perplexity.claims(found_with(increase))] == holds


def test_claims_and_tables_give_the_figures() -> None:
    """One row for each prompt length."""
    found = found_with([[2.0, 4.0], [1.0, 3.0]])
    closer, _ = perplexity.claims(found)
    increase, full = perplexity.tables(found)

    assert "from a prompt of 8 to one of 16 tokens: 2.00 to 1.00 (4 generated), 4.00 to 3.00 (32" in closer.here
    assert increase.rows == [("8", "2.00", "4.00"), ("16", "1.00", "3.00")]
    assert full.rows == [("8", "10.00", "10.00"), ("16", "10.00", "10.00")]
