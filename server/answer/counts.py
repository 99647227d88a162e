"""What one request has used so far: the prompts that were read, the tokens that were made, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

from griffin import Comparison, Selection, Verified
from griffin.method.auto import Outlook
from griffin.thresholds import Shares
from server.work.job import Ask, Made, Read


@dataclass(slots=True)
class PromptCounts:
    """One prompt.

    cached_tokens: tokens of the prompt that an earlier prompt had computed.
    selection: the neurons chosen for the prompt; None until they are chosen, and if none are.
    shares: fractions of the FF weights that tokens have read so far, if each token picks its own neurons.
    """

    cached_tokens: int = 0
    selection: Selection | None = None
    shares: Shares | None = None


@dataclass(slots=True)
class AnswerCounts:
    """One answer so far.

    tokens: how many were generated. reasoning_tokens: how many of them belong to thoughts.
    last_at: when the last token was made, in seconds of ``time.monotonic``.
    verified: what verification did; None if nothing is verified.
    """

    tokens: int = 0
    reasoning_tokens: int = 0
    last_at: float | None = None
    verified: Verified | None = None


@dataclass(slots=True)
class Times:
    """When tokens were made, in seconds of ``time.monotonic``.

    first: the first token of all answers; None before it.
    last: the last token made or prompt read; 0 before it.
    gaps: number of pairs of successive tokens within one answer.
    gaps_s: seconds between the tokens of all these pairs, summed.
    """

    first: float | None = None
    last: float = 0.0
    gaps: int = 0
    gaps_s: float = 0.0


class Counts:
    """The sum of a job's events.

    pruning: the choices that apply to all prompts. Until a prompt was read, these are the requested ones.
    outlook: what sparsity auto predicted, if it was requested.
    """

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.pruning = asks[0].pruning
        self.outlook: Outlook | None = None
        self.prompts = [PromptCounts() for _ in asks]
        self.answers: dict[tuple[int, int], AnswerCounts] = {}
        self.comparisons: list[Comparison] = []
        self.times = Times()

    @property
    def tokens(self) -> int:
        """Generated tokens of all answers."""
        return sum(answer.tokens for answer in self.answers.values())

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thoughts in all answers."""
        return sum(answer.reasoning_tokens for answer in self.answers.values())

    @property
    def selections(self) -> list[Selection]:
        """One for each prompt for which neurons were chosen."""
        return [prompt.selection for prompt in self.prompts if prompt.selection is not None]

    def read(self, read: Read, at: float) -> None:
        """A prompt was read."""
        self.pruning, self.outlook = read.pruning, read.outlook
        self.prompts[read.prompt].cached_tokens = read.cached_tokens
        if read.selection is not None:
            self._chosen(read.prompt, read.selection)
        self.times.last = at

    def made(self, made: Made) -> float | None:
        """A token was made.

        Returns:
            Seconds since the last token of the same answer; None for its first.
        """
        key, times, token = (made.prompt, made.sample), self.times, made.token
        if (answer := self.answers.get(key)) is None:
            answer = self.answers[key] = AnswerCounts()
        if token.selection is not None:
            self._chosen(made.prompt, token.selection)
        if token.shares is not None:
            self.prompts[made.prompt].shares = token.shares
        gap_s = None if answer.last_at is None else made.at - answer.last_at
        if gap_s is not None:
            times.gaps += 1
            times.gaps_s += gap_s
        if times.first is None:
            times.first = made.at
        times.last = answer.last_at = made.at
        answer.tokens += 1
        return gap_s

    def _chosen(self, prompt: int, selection: Selection) -> None:
        """The prompt's selection is the first one; a refresh may choose others later."""
        if self.prompts[prompt].selection is None:
            self.prompts[prompt].selection = selection
