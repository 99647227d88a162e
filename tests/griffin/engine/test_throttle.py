"""How many drafts are worth a pass, on simulated machines whose passes have a given cost."""

import random
from collections.abc import Callable, Sequence

import pytest

from griffin.engine.ngrams import LONGEST, NGrams, PromptNGrams
from griffin.engine.throttle import Costs, KnownCosts, Throttle

STEP_S = 0.01
MOST = 15


def cheap(tokens: int) -> float:
    """The cost of a pass in steps: the goal for the compiled pass."""
    return 1 + 0.13 * (tokens - 1)


def dear(tokens: int) -> float:
    """The cost in steps of a pass that is no faster than steps."""
    return float(tokens)


class Replay:
    """A given answer, in steps and passes. Drafts change no token, so the text need not be generated."""

    def __init__(self, prompt: Sequence[int], costs: Costs, cost: Callable[[int], float]) -> None:
        self.ngrams, self.throttle, self.cost = NGrams(PromptNGrams(prompt)), Throttle(costs), cost
        self.steps, self.drafted = 0.0, 0

    def answer(self, ids: Sequence[int]) -> float:
        """The speed, relative to an answer without drafts."""
        place, before = 0, self.steps
        while place < len(ids):
            match = self.ngrams.find()
            worth = self.throttle.worth(match.length, min(MOST, len(ids) - place - 1)) if match else 0
            drafts = self.ngrams.following(match, worth) if match else []
            right = next((n for n, draft in enumerate(drafts) if draft != ids[place + n]), len(drafts))
            spent = self.cost(len(drafts) + 1)
            self.throttle.spent(len(drafts), right + 1, spent * STEP_S)
            self.steps, self.drafted = self.steps + spent, self.drafted + len(drafts)
            for id in ids[place : place + right + 1]:
                if match := self.ngrams.find():
                    self.throttle.saw(match.length, self.ngrams.following(match, 1) == [id])
                self.ngrams.extend(id)
            place += right + 1
        return len(ids) / (self.steps - before)


def chat(seed: int, tokens: int) -> list[int]:
    """Random tokens: few pairs occur twice, and what follows them is chance."""
    numbers = random.Random(seed)
    return [int(numbers.paretovariate(0.7)) % 5000 for _ in range(tokens)]


def edit(ids: list[int], every: int) -> list[int]:
    """A copy in which every so many tokens one is replaced."""
    return [id + 10_000 if place % every == every - 1 else id for place, id in enumerate(ids)]


def test_an_edit_is_faster() -> None:
    """Twice as fast with cheap passes. The machine is known after the first answers."""
    costs, speeds = Costs(MOST + 1), []
    for seed in range(6):
        prompt = chat(seed, 200)
        speeds.append(Replay(prompt, costs, cheap).answer(edit(prompt, 25)))

    assert sorted(speeds)[len(speeds) // 2] > 2
    assert min(speeds) > 1.5


def test_text_that_repeats_nothing_is_not_slower() -> None:
    """At most 2 % slower, whatever a pass costs."""
    for cost in (cheap, dear):
        costs = Costs(MOST + 1)
        replays = [Replay(chat(seed, 100), costs, cost) for seed in range(10)]
        tokens = sum(len(chat(seed + 100, 300)) for seed in range(10))
        for seed, replay in enumerate(replays):
            replay.answer(chat(seed + 100, 300))

        assert tokens / sum(replay.steps for replay in replays) > 0.98


def test_passes_that_cost_as_much_as_steps_are_given_up() -> None:
    """A few are tried, and a few later. Little is lost even if all drafts are right."""
    costs, prompt = Costs(MOST + 1), chat(1, 400)
    first, second = (Replay(prompt, costs, dear) for _ in range(2))

    assert first.answer(edit(prompt, 25)) > 0.9
    assert second.answer(edit(prompt, 25)) > 0.95
    assert second.drafted < 200


def test_it_recovers_both_ways() -> None:
    """Text that changes between chat and edit, and a machine whose passes become cheap."""
    code, costs = chat(1, 300), Costs(MOST + 1)
    replay = Replay(code, costs, cheap)

    assert replay.answer(chat(2, 300)) > 0.97
    assert replay.answer(edit(code, 25)) > 1.8
    # What it learned from the edit is soon forgotten.
    assert replay.answer(chat(3, 300)) > 0.95
    assert replay.answer(edit(code, 25)) > 1.8
    replay.cost = dear
    replay.answer(edit(code, 25))
    replay.cost = cheap
    for seed in range(10):
        replay.answer(chat(seed + 10, 300))
    assert replay.answer(edit(code, 25)) > 1.5


def test_one_interruption_is_no_measurement() -> None:
    """Another process stops this one for a second, in a step or in a pass."""
    code, costs = chat(1, 300), Costs(MOST + 1)
    Replay(code, costs, cheap).answer(edit(code, 25))
    before = list(costs.ratios)
    costs.passed(8, 1.0)
    assert costs.ratios[8] < 1.5 * before[8]
    for _ in range(3):
        costs.stepped(1, 1.0)
        costs.stepped(1, STEP_S)

    assert Replay(code, costs, cheap).answer(edit(code, 25)) > 1.5


@pytest.mark.parametrize("first_s", [10 * STEP_S, 0.1 * STEP_S])
def test_the_very_first_token_says_little(first_s: float) -> None:
    """It may have waited for memory."""
    costs = Costs(MOST + 1)
    costs.stepped(1, first_s)
    for _ in range(5):
        costs.stepped(1, STEP_S)
    for _ in range(20):
        costs.passed(4, cheap(4) * STEP_S)

    assert costs.ratios[4] == pytest.approx(cheap(4), rel=0.3)


def test_a_pass_of_more_tokens_than_are_ever_tried_is_no_measurement() -> None:
    """A request may ask for that many drafts."""
    costs = Costs(MOST + 1)
    costs.stepped(1, STEP_S)
    before = list(costs.ratios)
    for tokens in (MOST + 2, 65):
        costs.passed(tokens, 9.0)

    assert costs.ratios == before


def test_costs_are_known_for_few_sparsities() -> None:
    """Clients may send any number, but only a few costs are held."""
    known = KnownCosts()
    found = {id(known.of("fast", number / 1000, MOST + 1)) for number in range(1000)}

    assert len(found) == 11
    assert known.of("fast", 0.5, MOST + 1) is not known.of("lossless", 0.5, MOST + 1)


def test_repetition_is_drafted_and_chance_is_not() -> None:
    """The share of accepted drafts decides: text that repeats gets more drafts, other text hardly any."""
    throttle = Throttle(Costs(16))
    for _ in range(20):
        throttle.spent(0, 1, 0.01)
    assert throttle.worth(LONGEST, 15) > 1
    for _ in range(60):
        throttle.saw(2, right=False)
    assert throttle.worth(2, 15) == 0
    for _ in range(60):
        throttle.saw(2, right=True)
    assert throttle.worth(2, 15) > 0
    # Now passes cost as much as steps.
    for _ in range(60):
        throttle.spent(0, 1, 0.01)
        for drafts in (1, 7):
            throttle.spent(drafts, drafts + 1, 0.01 * (drafts + 1))
    assert throttle.worth(LONGEST, 15) == 0
