"""Throttle: how many drafts from n-grams are worth a pass. No token depends on it, only how fast tokens come.

Two things are learned. How often a look-up is right is learned at every token, whether it was drafted or not, by the
length of the match. What a pass over several tokens costs is measured against what a token costs without drafts.
"""

from collections.abc import Sequence

from griffin.engine.ngrams import LONGEST

# Before anything was measured, each further token of a pass costs so much of a step.
FURTHER_COST = 0.3
# How much this prior weighs, in passes.
COST_WEIGHT = 0.5
# A measurement counts at most so many times the expected cost, because another process may have interrupted it.
OUTLIER = 3.0
# Old measurements lose weight, so that a change of the machine's speed is noticed.
TOKENS_KEPT = 0.95
PASSES_KEPT = 0.9
FORGOTTEN_A_TOKEN = 0.998
# So many tokens without drafts come first, then one after every so many passes; passes are compared with these.
FIRST_TOKENS = 3
PASSES_IN_A_ROW = 64
# A pass must be expected to give so many times the tokens that the same time gives without drafts.
MARGIN = 1.05
# Of a match's length: how much its prior weighs, in tokens, and how much of what was seen stays at each further one.
CHANCE_WEIGHT = 2.0
SEEN_KEPT = 0.97


class Acceptance:
    """How often the token that a look-up proposes is the one that comes, by the length of the match."""

    def __init__(self) -> None:
        self._right = [0.0] * (LONGEST + 1)
        self._seen = [0.0] * (LONGEST + 1)
        self._chances = [self._chance(length) for length in range(LONGEST + 1)]

    def saw(self, length: int, right: bool) -> None:
        """A match of this length proposed the token that came, or another one."""
        self._right[length] = SEEN_KEPT * self._right[length] + right
        self._seen[length] = SEEN_KEPT * self._seen[length] + 1
        self._chances[length] = self._chance(length)

    def expected(self, length: int, most: int) -> list[float]:
        """The tokens that a pass with 0 to ``most`` drafts is expected to give. A right draft lengthens the match."""
        tokens, chance = [1.0], 1.0
        for place in range(most):
            chance *= self._chances[min(length + place, LONGEST)]
            tokens.append(tokens[-1] + chance)
        return tokens

    def _chance(self, length: int) -> float:
        prior = max(0, length - 1) / (length + 1)
        return (self._right[length] + CHANCE_WEIGHT * prior) / (self._seen[length] + CHANCE_WEIGHT)


class Costs:
    """What a pass over several tokens costs, in units of what a token costs without drafts.

    They belong to one way to decode, such as a sparsity in mode fast, and are kept for the sequences that follow.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: the most tokens of a pass.
        """
        self._seconds, self._tokens = 0.0, 0.0
        self.measured = 0
        # For each number of tokens: the mean of measured costs, and how many count.
        self._means = [1.0] * (most + 1)
        self._counts = [0.0] * (most + 1)
        self._ratios = self._estimated()

    @property
    def ratios(self) -> Sequence[float]:
        """The cost of a pass by its number of tokens, from 0 on."""
        return self._ratios

    def stepped(self, tokens: int, seconds: float) -> None:
        """So many tokens came without drafts."""
        if self._tokens:
            seconds = min(seconds, OUTLIER * tokens * self._seconds / self._tokens)
        # The first token of all may wait for memory: the second one takes its place.
        kept = TOKENS_KEPT if self.measured > 1 else 0.0
        self._seconds, self._tokens = kept * self._seconds + seconds, kept * self._tokens + tokens
        self.measured += 1
        self._counts = [FORGOTTEN_A_TOKEN**tokens * count for count in self._counts]
        if self.measured % PASSES_IN_A_ROW == 0:
            self._ratios = self._estimated()

    def passed(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens was made. It counts once a token without drafts was measured.

        A request may name more drafts than are tried here; such passes do not count.
        """
        if not self._seconds or not 2 <= tokens < len(self._ratios):
            return
        ratio = min(seconds * self._tokens / self._seconds, OUTLIER * self._ratios[tokens])
        count = self._counts[tokens] = PASSES_KEPT * self._counts[tokens] + 1
        self._means[tokens] += (ratio - self._means[tokens]) / count
        self._ratios = self._estimated()

    def _estimated(self) -> list[float]:
        """Passes of other sizes say something too, the less the more they differ in size."""
        sizes = range(2, len(self._means))
        further = [(size, self._counts[size], (self._means[size] - 1) / (size - 1)) for size in sizes]
        seen = [each for each in further if each[1] > 0.01]
        return [1.0, 1.0, *(1 + (tokens - 1) * _mean(tokens, seen) for tokens in sizes)]


def _mean(tokens: int, seen: list[tuple[int, float, float]]) -> float:
    """What each further token of a pass costs: of sizes, how much each counts, and what it has cost there."""
    total, weight = COST_WEIGHT * FURTHER_COST, COST_WEIGHT
    for size, count, cost in seen:
        likeness = count * (min(size, tokens) / max(size, tokens)) ** 2
        total, weight = total + likeness * cost, weight + likeness
    return total / weight


class Throttle:
    """Decides for one sequence."""

    def __init__(self, costs: Costs) -> None:
        """
        Args:
            costs: of the way in which this sequence is decoded. They are added to.
        """
        self._costs, self._acceptance = costs, Acceptance()
        self._passes = 0

    def worth(self, length: int, most: int) -> int:
        """How many drafts a pass should have; 0 is better done without.

        Args:
            length: of the match that they come from.
            most: there can be no more.
        """
        if self._costs.measured < FIRST_TOKENS or self._passes >= PASSES_IN_A_ROW:
            return 0
        ratios = self._costs.ratios
        expected = self._acceptance.expected(length, min(most, len(ratios) - 2))
        gains = [tokens / ratio for tokens, ratio in zip(expected, ratios[1:], strict=False)]
        best = max(gains)
        return gains.index(best) if best > MARGIN else 0

    def saw(self, length: int, right: bool) -> None:
        """See ``Acceptance.saw``."""
        self._acceptance.saw(length, right)

    def spent(self, drafts: int, tokens: int, seconds: float) -> None:
        """A pass with so many drafts was made, or without any so many tokens."""
        if drafts:
            self._passes += 1
            self._costs.passed(drafts + 1, seconds)
        else:
            self._passes = 0
            self._costs.stepped(tokens, seconds)


class KnownCosts:
    """The costs of each way to decode in which one engine has decoded so far."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, float, int], Costs] = {}

    def of(self, way: str, sparsity: float, most: int) -> Costs:
        """
        Args:
            way: its name. There should be few.
            sparsity: to tenths, because clients may choose any number.
            most: the most tokens of a pass.
        """
        key = way, round(sparsity, 1), most
        if key not in self._costs:
            self._costs[key] = Costs(most)
        return self._costs[key]
