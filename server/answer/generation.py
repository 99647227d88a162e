"""One request on its way to the client: a job's events become pieces of text."""

import weakref
from collections.abc import AsyncGenerator, Iterator

from server.answer.counts import Counts
from server.answer.observation import Observation
from server.answer.report import Report
from server.answer.texts import Delivery, Piece, Texts
from server.answer.traces import Traces
from server.errors import ServerDraining, reason
from server.protocol.report import FinishReason
from server.served import ServedModel
from server.work.job import Compared, Event, Job, Read
from server.work.mailbox import Silence


class Generation:
    """A job from the queue to its last piece. ``report``: what the job has used and applied so far."""

    def __init__(
        self, job: Job, model: ServedModel, counts: Counts, report: Report, observation: Observation, delivery: Delivery
    ) -> None:
        """
        Args:
            counts: shared: ``observation`` counts into it, ``report`` reads it.
        """
        self.job, self.model, self.report, self.delivery = job, model, report, delivery
        self._observation, self._counts = observation, counts
        self._texts = Texts(model.tokenizer, job.asks, delivery)
        self._traces = Traces(job.asks[0], counts, model.experts, model.workers.comparisons)
        self._outcome = Outcome(job, delivery.sequences)
        self._closed = False
        # The model stays loaded while this object lives: a stream to a slow reader may still hold it.
        model.answers.add(id(self))
        weakref.finalize(self, model.answers.discard, id(self))

    def submit(self) -> None:
        """Queue the job; raises like ``Queue.submit``. The request is counted from here on, however it ends."""
        self.model.workers.queue.submit(self.job)
        self._observation.accepted()

    async def pieces(self, idle_s: float | None = None) -> AsyncGenerator[Piece | None, None]:
        """All pieces; None after each ``idle_s`` seconds without one. Ends early if the job was cancelled.

        Raises:
            Exception: the error that ended the job.
        """
        try:
            while self._outcome.is_open:
                event = await self.job.mailbox.next(idle_s)
                if event is None:
                    return
                if event is Silence.IDLE:
                    yield None
                    continue
                for piece in self._pieces_of(event):
                    if piece.finish_reason:
                        self._end(piece, piece.finish_reason)
                    yield piece
            self.job.answered = True
            self._traces.answered()
        except ServerDraining:
            raise
        except Exception as error:
            self._outcome.word = reason(error)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Cancel the job if it still runs, and count the request once. Called however the request ends."""
        if not self._closed:
            self._closed = True
            self.model.workers.queue.discard(self.job)
            self._observation.end(self._outcome.word)

    def _pieces_of(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, Compared):
            self._observation.compared(event)
            self._outcome.compared()
        elif isinstance(event, Read):
            self._observation.read(event)
            self._traces.read(event)
            yield from self._texts.begin(event)
        elif self._texts.goes_on(event):
            self._observation.made(event)
            self._traces.made(event)
            piece = self._texts.add(event)
            self._counts.answers[piece.answer].reasoning_tokens += piece.thinking
            yield piece

    def _end(self, piece: Piece, finish_reason: FinishReason) -> None:
        self.job.end(piece.prompt, piece.sample)
        self._outcome.ended(finish_reason)


class Outcome:
    """How a request ends, in one word: its last answer's finish reason, ``cancelled``, or an error's reason."""

    def __init__(self, job: Job, sequences: int) -> None:
        self.word = "cancelled"
        self._last = "cancelled"
        self._answers = len(job.asks) * sequences
        self._comparisons = sum(len(ask.samplings) for ask in job.asks if ask.compare)

    @property
    def is_open(self) -> bool:
        """Whether an answer has not ended, or a requested comparison with the full model is missing."""
        return self._answers > 0 or self._comparisons > 0

    def ended(self, finish_reason: FinishReason) -> None:
        """One more answer has ended."""
        self._answers -= 1
        self._last = finish_reason
        self._settle()

    def compared(self) -> None:
        """One more comparison has come."""
        self._comparisons -= 1
        self._settle()

    def _settle(self) -> None:
        if not self.is_open:
            self.word = self._last
