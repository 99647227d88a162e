"""Sample: what one request did, in seconds since the run began."""

from collections.abc import Mapping
from dataclasses import dataclass, field

UNFINISHED = "unfinished"


def label(sparsity: float | None) -> str:
    """As tables, plots and JSON name it."""
    return "none" if sparsity is None else f"{sparsity:g}"


@dataclass(frozen=True, slots=True)
class Sample:
    """Latencies count from ``due_s``, the intended start: a client that is late does not make a server look fast.

    sparsity: that was asked for; None when the field was not sent.
    due_s: when the request was to start. sent_s: when it did.
    text_s: when each chunk with text came; empty when the answer came whole.
    last_s: when the last chunk with a choice came; None when the answer came whole.
    end_s: when the answer had ended, or the request had failed.
    tokens: generated, as the server counts them; None where it does not say.
    cached_tokens: of the prompt, not read again; None where the server does not say.
    error: why there is no answer, UNFINISHED, or None. message: the server's words on it.
    metrics, griffin: the server's own blocks, where it has them.
    """

    sparsity: float | None
    due_s: float
    sent_s: float
    end_s: float
    text_s: tuple[float, ...] = ()
    last_s: float | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)
    griffin: Mapping[str, object] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        return self.error is None

    @property
    def ttft_s(self) -> float | None:
        """From the intended start to the first text."""
        return self.text_s[0] - self.due_s if self.text_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Between one chunk of text and the next."""
        return [later - earlier for earlier, later in zip(self.text_s, self.text_s[1:], strict=False)]

    @property
    def e2e_s(self) -> float:
        """From the intended start to the end."""
        return self.end_s - self.due_s

    @property
    def count(self) -> int | None:
        """Generated tokens: the server's count, or else one for each chunk of text."""
        return self.tokens if self.tokens is not None else len(self.text_s) or None

    @property
    def decode_s(self) -> float | None:
        """From the first text to the last token; None for text that came all at once."""
        return self.last_s - self.text_s[0] if self.last_s is not None and len(self.text_s) > 1 else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.decode_s is None or self.count is None or self.count < 2:
            return None
        return self.decode_s / (self.count - 1)
