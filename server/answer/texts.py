"""The tokens of a request's answers become pieces of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.protocol.report import FinishReason
from server.text.logprobs import ScoredToken
from server.text.reading import AnswerReader, Reading
from server.text.response_template import TemplateReader, TemplateReading
from server.text.tokenizer import REPLACEMENT, TextStream, Tokenizer
from server.text.tool_calls import Content, Part, joined
from server.work.job import Ask, Made, Read


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer is written.

    model_name: the name that the client used.
    choices, sequences: answers to each prompt that are returned, and that are generated (``n`` and ``best_of``).
    opens: each answer begins with a piece before its first token.
    prompts: the texts that answers begin with (``echo``), one for each prompt.
    logprobs, token_ids: what pieces carry beside their text.
    stops, include_stop, min_tokens: where the text ends; see ``TextStream``.
    reading: how thoughts and calls are read from the text; None if there can be none.
    """

    model_name: str
    choices: int
    sequences: int
    opens: bool = False
    prompts: list[str] | None = None
    logprobs: bool = False
    token_ids: bool = False
    stops: list[str] = field(default_factory=list)
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    reading: Reading | TemplateReading | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of one answer: its opening, or one token.

    prompt, sample: index of the prompt, and of the answer to it.
    tokens: the tokens with log-probabilities, if requested. In an opening that echoes the prompt, the prompt's tokens.
    ids: ids of the generated tokens.
    finish_reason: set on the answer's last piece.
    parts: thoughts, content and calls in their order, if the answer is read for them; ``text`` is then the content.
    thinking: the token belongs to a thought.
    stop: the stop string that ended the answer, if one did.
    """

    prompt: int
    sample: int
    text: str
    opening: bool = False
    tokens: list[ScoredToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    parts: Sequence[Part] = ()
    thinking: bool = False
    stop: str | None = None

    @property
    def answer(self) -> tuple[int, int]:
        """The key of the answer that this piece belongs to."""
        return self.prompt, self.sample


class Texts:
    """The answers of one request that have begun and not ended."""

    def __init__(self, tokenizer: Tokenizer, asks: Sequence[Ask], delivery: Delivery) -> None:
        self._tokenizer, self._asks, self._delivery = tokenizer, asks, delivery
        self._streams: dict[tuple[int, int], TextStream] = {}
        self._readers: dict[tuple[int, int], AnswerReader | TemplateReader] = {}

    def goes_on(self, made: Made) -> bool:
        """False for a token that was made while the answer's text had already ended."""
        return (made.prompt, made.sample) in self._streams

    def begin(self, read: Read) -> Iterator[Piece]:
        """A prompt was read: the openings of its answers, if they have openings."""
        delivery, ask = self._delivery, self._asks[read.prompt]
        text = delivery.prompts[read.prompt] if delivery.prompts else ""
        scores = [ScoredToken(*pair) for pair in zip(ask.prompt_ids, read.scores, strict=True)] if read.scores else []
        # Only the prompt was requested.
        finish_reason: FinishReason | None = None if ask.samplings else "length"
        for sample in range(delivery.sequences):
            if not finish_reason:
                stream = self._streams[read.prompt, sample] = self._stream(ask)
                if delivery.reading:
                    self._readers[read.prompt, sample] = delivery.reading.reader()
                # The first generated token will contain that character whole.
                text = text.rstrip(REPLACEMENT) if stream.begins_in_character else text
            if delivery.opens or delivery.prompts or finish_reason:
                yield Piece(read.prompt, sample, text, True, scores, [], finish_reason)

    def add(self, made: Made) -> Piece:
        """The text of a token; with the last token, also all text that was held back."""
        key, token, delivery = (made.prompt, made.sample), made.token, self._delivery
        stream = self._streams[key]
        # A token that ends an answer is not text, unless it was requested or it completes the grammar's text.
        hidden = token.finish_reason == "stop" and not (delivery.include_stop or token.complete)
        text = "" if hidden else stream.feed(token.id)
        if stream.stopped or token.finish_reason:
            # The text that was held back may contain a stop string.
            text += stream.flush()
        stop = stream.stopped
        finish_reason = "stop" if stop else token.finish_reason
        parts: list[Part] = []
        thinking = False
        if reader := self._readers.get(key):
            thinking = reader.thinking
            parts = _read(reader, text, finish_reason, cut=finish_reason == "length" or stop is not None)
            text = "".join(part.text for part in parts if isinstance(part, Content))
            thinking = thinking or reader.thinking
            finish_reason = "stop" if reader.done else finish_reason
        if finish_reason:
            del self._streams[key]
        tokens = [ScoredToken(token.id, token.logprobs, hidden, stream.shows_special)] if delivery.logprobs else []
        return Piece(*key, text, False, tokens, [token.id], finish_reason, parts, thinking, stop)

    def _stream(self, ask: Ask) -> TextStream:
        delivery = self._delivery
        return TextStream(
            self._tokenizer,
            ask.prompt_ids,
            delivery.stops,
            include_stop=delivery.include_stop,
            skip_special_tokens=delivery.skip_special_tokens,
            shown=delivery.reading.shown if delivery.reading else (),
            min_tokens=delivery.min_tokens,
        )


def _read(
    reader: AnswerReader | TemplateReader, text: str, finish_reason: FinishReason | None, *, cut: bool
) -> list[Part]:
    parts = reader.feed(text)
    return joined([*parts, *reader.end(cut=cut)]) if finish_reason else parts
