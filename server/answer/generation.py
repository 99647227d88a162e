"""One request on its way to the client: a job's events become pieces of text."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace

from griffin import Pruning
from server.answer.tally import Tally
from server.errors import ServerDraining, reason
from server.protocol.report import FinishReason
from server.service import ServedModel
from server.text.logprobs import ScoredToken
from server.text.tokenizer import REPLACEMENT, TextStream
from server.work.job import Compared, Event, Job, Made, Read, Silence


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an answer is to be written, beyond which tokens it has.

    model_name: as the client called it. choices, sequences: n and best_of. prompts: the texts to begin with (echo).
    opens: each answer begins with a piece of its own, before its first token.
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of one answer: its opening, or one token of it. ``finish_reason`` on the last.

    tokens: with log-probabilities, if they are wanted; those of the prompt in an opening that echoes it.
    ids: of generated tokens.
    """

    prompt: int
    sample: int
    text: str
    opening: bool = False
    tokens: list[ScoredToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Generation:
    """From a queued job to its last piece."""

    def __init__(
        self, job: Job, model: ServedModel, tally: Tally, delivery: Delivery, log_fields: dict[str, object]
    ) -> None:
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self.job, self.model, self.tally, self.delivery = job, model, tally, delivery
        self._log_fields = log_fields
        self._texts: dict[tuple[int, int], TextStream] = {}
        # Of each prompt that was read.
        self._prunings: dict[int, Pruning] = {}
        self._open = len(job.asks) * delivery.sequences
        # Sequences whose comparison with the full model has not come.
        self._uncompared = sum(len(ask.samplings) for ask in job.asks if ask.compare)
        self._outcome = self._last_reason = "cancelled"
        # Of the first sequence, if it was drawn to be compared later.
        self._shadow: list[int] | None = [] if model.workers.comparisons.draws(job.asks[0]) else None
        self._closed = False

    async def pieces(self, idle_s: float | None = None) -> AsyncGenerator[Piece | None, None]:
        """All of them; None after that long without one. Ends before the last one when the job was cancelled."""
        try:
            while self._open or self._uncompared:
                event = await self.job.next(idle_s)
                if event is None:
                    return
                if event is Silence.IDLE:
                    yield None
                    continue
                for piece in self._pieces_of(event):
                    yield piece
            self.job.answered = True
            if self._shadow is not None:
                self._compare_later(self._shadow)
        except ServerDraining:
            raise
        except Exception as error:
            self._outcome = reason(error)
            raise
        finally:
            self.close()

    def _compare_later(self, ids: list[int]) -> None:
        answered = replace(self.job.asks[0], pruning=self._prunings[0])
        self.model.workers.comparisons.later(answered, self.tally.selection(0), ids)

    def close(self) -> None:
        """Give the job up if it still runs, and count the request, once. Called however the request ends."""
        if not self._closed:
            self._closed = True
            self.model.workers.queue.discard(self.job)
            self._log_fields.update(self.tally.observe(self._outcome))

    def _pieces_of(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, Compared):
            self.tally.compared(event.comparison)
            self._uncompared -= 1
            self._settle()
            return iter(())
        return self._opened(event) if isinstance(event, Read) else self._continued(event)

    def _opened(self, event: Read) -> Iterator[Piece]:
        """A prompt has been read: its answers begin."""
        delivery, ask = self.delivery, self.job.asks[event.prompt]
        self._prunings[event.prompt] = event.pruning
        self.tally.read(event)
        self.model.experts.remember(event.selection, event.pruning)
        text = delivery.prompts[event.prompt] if delivery.prompts else ""
        scores = [ScoredToken(*pair) for pair in zip(ask.prompt_ids, event.scores, strict=True)] if event.scores else []
        for sample in range(delivery.sequences):
            self._texts[event.prompt, sample] = TextStream(
                self.model.tokenizer,
                ask.prompt_ids,
                delivery.stops,
                include_stop=delivery.include_stop,
                skip_special_tokens=delivery.skip_special_tokens,
                min_tokens=delivery.min_tokens,
            )
            # Nothing but the prompt was wanted.
            finish_reason: FinishReason | None = None if ask.samplings else "length"
            if finish_reason:
                self._end(event.prompt, sample, finish_reason)
            elif self._texts[event.prompt, sample].begins_in_character:
                # The first generated token will spell it whole.
                text = text.rstrip(REPLACEMENT)
            if delivery.opens or delivery.prompts or finish_reason:
                yield Piece(event.prompt, sample, text, True, scores, [], finish_reason)

    def _continued(self, event: Made) -> Iterator[Piece]:
        """A token has been made: its text, or, with the last one, all that is left of it."""
        key, token = (event.prompt, event.sample), event.token
        if (text := self._texts.get(key)) is None:
            # Made while the end of its text was being found.
            return
        self.tally.made(event.prompt, event.sample, token, event.at)
        own = self.tally.selection(event.prompt)
        if token.selection is not None and own is not None and token.selection.expert_set == own.expert_set:
            # Others, taken on the way, have no name in the answer; those that were named are known.
            self.model.experts.remember(token.selection, self._prunings[event.prompt])
        if self._shadow is not None and key == (0, 0):
            self._shadow.append(token.id)
        # The token that ends a text is not part of it, unless it was asked for.
        hidden = token.finish_reason == "stop" and not self.delivery.include_stop
        new = "" if hidden else text.feed(token.id)
        if text.stopped or token.finish_reason:
            # What was held back may hold a stop string.
            new += text.flush()
        finish_reason = "stop" if text.stopped else token.finish_reason
        if finish_reason:
            self._end(event.prompt, event.sample, finish_reason)
        tokens = [ScoredToken(token.id, token.logprobs, hidden, text.shows_special)] if self.delivery.logprobs else []
        yield Piece(event.prompt, event.sample, new, False, tokens, [token.id], finish_reason)

    def _end(self, prompt: int, sample: int, finish_reason: FinishReason) -> None:
        del self._texts[prompt, sample]
        self.job.end(prompt, sample)
        self._open -= 1
        self._last_reason = finish_reason
        self._settle()

    def _settle(self) -> None:
        if not self._open and not self._uncompared:
            self._outcome = self._last_reason
