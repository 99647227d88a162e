"""Sample: what happened to one request, in seconds since the run began."""

from collections.abc import Mapping
from dataclasses import dataclass, field

UNFINISHED = "unfinished"


def label(sparsity: float | None) -> str:
    """A sparsity's name in tables, plots and JSON."""
    return "none" if sparsity is None else f"{sparsity:g}"


@dataclass(frozen=True, slots=True)
class Sample:
    """Latencies count from ``due_s``, the intended start: a late client does not make a server look fast.

    sparsity: the one that was asked for; None if the field was not sent.
    due_s: when the request should start.
    sent_s: when it did start.
    end_s: when its answer ended, or when it failed.
    text_s: when each chunk with text came; empty if the answer came whole.
    last_s: when the last chunk with a choice came; None if the answer came whole.
    tokens: how many were generated, by the server's count; None if it does not tell.
    cached_tokens: prompt tokens that the server took from its cache; None if it does not tell.
    error: why there is no answer, or UNFINISHED; None if there is one.
    message: the server's message about the error.
    metrics, griffin: the server's own objects, if it sends them.
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
        """Generated tokens by the server's count, or else one for each chunk of text."""
        return self.tokens if self.tokens is not None else len(self.text_s) or None

    @property
    def decode_s(self) -> float | None:
        """From the first text to the last token; None if the text came at once."""
        return self.last_s - self.text_s[0] if self.last_s is not None and len(self.text_s) > 1 else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.decode_s is None or self.count is None or self.count < 2:
            return None
        return self.decode_s / (self.count - 1)
