"""The verdict, from scores written by hand."""

import math
from typing import Any

import pytest

from griffin.experiments.common.results import Claim
from griffin.experiments.report.readings import Reach, Reading, of_all, reaches, readings
from griffin.experiments.report.summary import headline, summary

TITLES = {"classification": "Classification (Table 1)", "perplexity": "Perplexity (Figure 5)"}
CHANCE = {"piqa": 0.5, "copa": 0.5, "boolq": 0.5, "arc_easy": 0.25}


def reading(pruned: float, full: float = 0.5, sparsity: float = 0.5, task: str = "xsum", **changes: Any) -> Reading:
    given = {"items": 100, "full_error": 0.0, "pruned_error": 0.0, "chance": 0.0, **changes}
    return Reading(task=task, metric="acc", sparsity=sparsity, full=full, pruned=pruned, **given)


def found(
    full: dict[str, float], items: int = 200, error: float = 0.001, **griffin: dict[str, float]
) -> dict[str, Any]:
    """Accuracies by task. GRIFFIN's have their sparsity in percent in the name, such as s50={...}."""
    variants = [{"name": "full", "sparsity": 0.0, "statistic": "flocking", "selection": "top_k"}]
    scores = {task: {"full": {"acc": value, "acc_stderr": error}} for task, value in full.items()}
    for key, values in griffin.items():
        name = f"GRIFFIN {key[1:]} %"
        variants.append({"name": name, "sparsity": int(key[1:]) / 100, "statistic": "flocking", "selection": "top_k"})
        for task, value in values.items():
            scores[task][name] = {"acc": value, "acc_stderr": error}
    tasks = {task: {"items": items, "metrics": ["acc"], "shots": 0, "chance": CHANCE[task]} for task in full}
    return {"variants": variants, "tasks": tasks, "scores": scores}


@pytest.mark.parametrize(
    ("pruned", "grade"),
    [(0.6, "near"), (0.495, "near"), (0.4949, "tolerable"), (0.475, "tolerable"), (0.4749, "broken"), (0.0, "broken")],
)
def test_limits(pruned: float, grade: str) -> None:
    """1 % of 0.5 is 0.005 and 5 % is 0.025. A loss of exactly that is within it, and a gain is no loss."""
    assert reading(pruned).grade == grade


def test_standard_error_of_a_change() -> None:
    """0.03 and 0.04 combine to 0.05, a tenth of 0.5: -8 % is within one error, -15 % within two."""
    near, far, beyond = (reading(0.5 * (1 - loss), full_error=0.03, pruned_error=0.04) for loss in (0.08, 0.15, 0.21))

    assert near.error == pytest.approx(0.1)
    assert near.change == pytest.approx(-0.08)
    assert (near.within(1), near.within(2)) == (True, True)
    assert (far.within(1), far.within(2)) == (False, True)
    assert (beyond.within(1), beyond.within(2)) == (False, False)
    assert reading(0.4, full_error=None).error is None
    assert not reading(0.5, full_error=None).within(2)


@pytest.mark.parametrize(
    ("full", "error", "chance", "mute"),
    [
        # 100 guesses among four have an error of 0.0433, whatever error the score has.
        (0.336, 0.03, 0.25, True),
        (0.337, 0.03, 0.25, False),
        (0.45, 0.0, 0.5, True),
        (0.34, None, 0.25, False),
        (0.0, None, 0.0, True),
        (0.01, 0.006, 0.0, True),
    ],
)
def test_a_model_that_guesses_tells_nothing(full: float, error: float | None, chance: float, mute: bool) -> None:
    """Up to two standard errors above chance, or 0 if the task has no choices."""
    found = reading(full, full=full, full_error=error, chance=chance)

    assert found.mute is mute
    assert (found.grade == "mute") is mute
    assert found.full or math.isnan(found.kept)


def test_readings_are_griffins() -> None:
    """The baseline and other strategies are left out. The metric is the task's first, and chance is known."""
    both = found({"piqa": 0.7}, s50={"piqa": 0.63})
    both["variants"] += [
        {"name": "magnitude", "sparsity": 0.5, "statistic": "magnitude", "selection": "top_k"},
        {"name": "sampling", "sparsity": 0.5, "statistic": "flocking", "selection": "sample"},
    ]
    both["scores"]["piqa"] |= {"magnitude": {"acc": 0.1}, "sampling": {"acc": 0.2}}
    (only,) = readings(both)

    assert (only.task, only.metric, only.sparsity, only.items, only.chance) == ("piqa", "acc", 0.5, 200, 0.5)
    assert only.kept == pytest.approx(0.9)


def test_without_a_chance_level() -> None:
    """A task without choices has no score of guessing: its chance is 0."""
    given = found({"piqa": 0.01}, s50={"piqa": 0.01})
    given["tasks"]["piqa"]["chance"] = None

    assert readings(given)[0].chance == 0
    assert not readings(given)[0].mute


def test_the_run_with_more_items_counts() -> None:
    """Two experiments measured the same task and sparsity; at 25 % only one did."""
    large = found({"piqa": 0.7}, items=200, s50={"piqa": 0.65})
    small = found({"piqa": 0.7}, items=50, s50={"piqa": 0.6}, s25={"piqa": 0.69})
    for founds in ({"classification": large, "sparsity": small}, {"classification": small, "sparsity": large}):
        kept = {reading.sparsity: (reading.items, reading.pruned) for reading in of_all(founds)}
        assert kept == {0.5: (200, 0.65), 0.25: (50, 0.69)}


def test_reach_ends_at_the_first_failure() -> None:
    """Losses of 0.5, 2, 0.1, 4.9, 6 and 1 %: within 1 % only up to 10 % sparsity, and within 5 % up to 40 %."""
    losses = {0.3: 0.001, 0.1: 0.005, 0.2: 0.02, 0.6: 0.01, 0.4: 0.049, 0.5: 0.06}
    several = [reading(0.5 * (1 - loss), sparsity=sparsity) for sparsity, loss in losses.items()]
    never = reading(0.4, sparsity=0.1, task="coqa")
    guessing = reading(0.5, sparsity=0.1, task="piqa", chance=0.5)

    assert reaches([*several, never, guessing]) == [Reach("xsum", 0.1, 0.4), Reach("coqa", None, None)]


CLASSIFICATION = found(
    {"piqa": 0.7, "boolq": 0.6, "arc_easy": 0.5, "copa": 0.501},
    s50={"piqa": 0.7, "boolq": 0.58, "arc_easy": 0.45, "copa": 0.5},
)


def test_the_headline() -> None:
    """Three tasks lose 0, 3.3 % and 10 %; the fourth is not judged. Only PIQA's change of 0 may be chance."""
    assert headline({"classification": CLASSIFICATION}) == (
        "At 50 % sparsity, 1 of 3 tasks stays within 1 % of the full model, 1 loses 1 to 5 %, and 1 loses more. "
        "1 of the 3 changes is within two standard errors, so it may be chance."
    )
    assert "this report cannot judge quality" in headline({"jaccard": {}})
    assert "no verdict" in headline({"classification": found({"copa": 0.5}, s50={"copa": 0.5})})


def test_a_sparsity_near_the_papers() -> None:
    """Where 50 % was not measured, the nearest sparsity is used."""
    several = found({"piqa": 0.7}, s40={"piqa": 0.7}, s80={"piqa": 0.3})

    assert headline({"sparsity": several}).startswith("At 40 % sparsity, 1 of 1 task stays within")


def test_chance_is_named_for_several_changes() -> None:
    """Some of the changes, or all of them, may be chance."""
    scores = {"piqa": 0.7, "copa": 0.8, "arc_easy": 0.5}
    some = headline({"classification": found(scores, s50={**scores, "arc_easy": 0.3})})
    every = headline({"classification": found(scores, s50=scores)})

    assert "2 of 3 tasks stay within 1 % of the full model, 0 lose 1 to 5 %, and 1 loses more. 2 of the 3" in some
    assert every.endswith("All 3 changes are within two standard errors, so they may be chance.")


def test_changes_that_may_be_chance_are_named() -> None:
    """0.58 of 0.6 with errors of 0.03: 3.3 % lost, two standard errors are 2 x 0.0424 / 0.6 = 14.1 %."""
    text = summary({"classification": found({"boolq": 0.6}, error=0.03, s50={"boolq": 0.58})}, {}, TITLES)

    assert "The change is within two standard errors, so it may be chance." in text
    assert (
        "- **May be chance**, because the change is within one standard error: BoolQ (200 items)" in text.splitlines()
    )
    assert (
        "- **Smallest change that this run can show** (two standard errors): 14.1 % in BoolQ (200 items)"
        in text.splitlines()
    )
    assert "| BoolQ | accuracy | 200 | 60.0 % | 58.0 % | -3.3 % | 14.1 % |" in text.splitlines()


def test_grades_by_name() -> None:
    """Each task is listed once, with its change. A task where the model guesses is not judged."""
    lines = summary({"classification": CLASSIFICATION}, {}, TITLES).splitlines()

    assert "- **Within 1 % of the full model**: PIQA (+0.0 %)" in lines
    assert "- **Loses 1 to 5 %**: BoolQ (-3.3 %)" in lines
    assert "- **Loses more than 5 %**: ARC-e (-10.0 %)" in lines
    (mute,) = [line for line in lines if line.startswith("- **Not judged**")]
    assert mute.endswith("COPA (accuracy 50.1 %, guessing 50 %)")


def test_a_score_of_nothing() -> None:
    """If the full model scores 0, no change can be computed, and the score is not compared with guessing."""
    zero = found({"piqa": 0.0}, s50={"piqa": 0.0})
    zero["tasks"]["piqa"]["chance"] = None
    lines = summary({"sparsity": zero}, {}, TITLES).splitlines()

    assert "| PIQA | accuracy | 200 | 0.0 % | 0.0 % | - | - |" in lines
    assert "| PIQA | not judged | not judged | - | - |" in lines
    (mute,) = [line for line in lines if line.startswith("- **Not judged**")]
    assert mute.endswith("(or above 0): PIQA (accuracy 0 %)")


def test_no_spread_is_no_precision() -> None:
    """If both models answer all items correctly, the error is unknown, and so is the smallest visible change."""
    text = summary({"classification": found({"piqa": 1.0}, error=0.0, items=20, s50={"piqa": 1.0})}, {}, TITLES)

    assert "The change is within two standard errors" in text
    assert "this run can show" not in text


def test_the_sweep() -> None:
    """PIQA is within 1 % up to 25 % sparsity, ARC-e at no sparsity. Both are within 5 % up to 25 %."""
    swept = found(
        {"piqa": 0.8, "arc_easy": 0.5},
        s25={"piqa": 0.796, "arc_easy": 0.48},
        s50={"piqa": 0.76, "arc_easy": 0.4},
    )
    lines = summary({"sparsity": swept}, {}, TITLES).splitlines()

    assert (
        "Largest measured sparsity up to which all judged tasks stay within 1 % of the full model: none. Within 5 %: "
        "25 %." in lines
    )
    # Two standard errors: 2 x 0.001414 / 0.8 and 2 x 0.001414 / 0.5.
    assert "| PIQA | 25 % | 50 % | 99.5 | 95.0 | 0.4 % |" in lines
    assert "| ARC-e | none | 25 % | 96.0 | 80.0 | 0.6 % |" in lines


def test_claims_are_counted_and_figures_spoken() -> None:
    """The smallest and largest growth of perplexity, the sentence on speed, and where a finding does not hold."""
    claims = {
        "perplexity": [Claim("It falls.", True, "From +9 % to +4 %"), Claim("It grows.", None, "By 0.1 %.")],
        "classification": [Claim("It keeps.", False, "It does not.")],
        "latency": [Claim("It is faster.", True, "By 1.2x.")],
    }
    perplexity = {
        "prompts": [128, 512], "generations": [64, 256], "sparsity": 0.5,
        "full": [[10.0, 10.0], [10.0, 8.0]], "griffin": [[12.0, 16.0], [11.0, 10.0]],
    }  # fmt: skip
    lines = summary({"classification": CLASSIFICATION, "perplexity": perplexity}, claims, TITLES).splitlines()

    assert (
        "- **Perplexity**: at 50 % sparsity it changes by +10.0 % at best (64 tokens generated after a prompt of 512) "
        "and by +60.0 % at worst (256 tokens generated after a prompt of 128)." in lines
    )
    assert "- **Speed**: By 1.2x." in lines
    assert (
        "- **The paper's findings**: of 4 that were tested, 2 hold here. 1 does not hold: Classification (Table 1). "
        "This run cannot judge 1: Perplexity (Figure 5)." in lines
    )


def test_no_word_about_findings_that_cannot_be_judged_if_there_are_none() -> None:
    claims = {"latency": [Claim("It is faster.", True, "By 1.2x.")]}
    lines = summary({}, claims, TITLES).splitlines()

    assert "- **The paper's findings**: of 1 that were tested, 1 holds here. 0 do not hold." in lines
