"""Continuation: one sequence that follows a prompt, token by token, verified or not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from griffin.decode.decoder import Decoder
from griffin.decode.logprobs import Logprobs
from griffin.decode.sampler import Drawn
from griffin.engine.prompt_neurons import PromptNeurons
from griffin.engine.speculation import Block, Verified, Verifier
from griffin.neurons import Selection
from griffin.request import Sampling
from griffin.thresholds import Shares

# To learn what tokens have read, the host must wait for a device that works ahead. So it asks only after every so many
# tokens, and after the last one.
SHARES_EVERY = 32

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    logprobs: set if the sampling asks for them.
    finish_reason: set on the last token only. An end-of-sequence token is yielded too.
    selection: set on the first token made by kept neurons alone, and again when other neurons replace them.
    verified: if verification was requested: its figures so far, including this token's whole block.
    shares: mean shares of the FF weights read so far, if each token picks what it reads and it is counted.
    complete: whether the sequence ends because its grammar does. Then this token is part of the text, unlike a token
        that ends a sequence by itself.
    """

    id: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    selection: Selection | None = None
    verified: Verified | None = None
    shares: Shares | None = None
    complete: bool = False


class Continuation:
    """Generates the tokens of one sequence after a prompt."""

    def __init__(
        self,
        decoder: Decoder,
        neurons: PromptNeurons,
        sampling: Sampling,
        end_ids: frozenset[int],
        cancelled: Callable[[], bool],
        require: Callable[[], None],
    ) -> None:
        """
        Args:
            decoder: its cache ends where the prompt ends.
            end_ids: each of these ids ends the sequence.
            cancelled: asked between tokens; once True, the sequence ends.
            require: asked between tokens; raises if the engine runs another sequence.
        """
        self._decoder, self._neurons, self._sampling, self._end_ids = decoder, neurons, sampling, end_ids
        self._cancelled, self._require = cancelled, require

    def unverified(self, logits_V: Tensor, prompt_ids: list[int], reported: int) -> Iterator[Token]:
        """Tokens from the kept neurons, without verification.

        Args:
            logits_V: the first token is drawn from these.
            reported: the number of the token that reports the neurons; the first token has number 1.
        """
        decoder, most, cancelled = self._decoder, self._sampling.max_tokens, self._cancelled
        pending = decoder.begin(logits_V, self._sampling, prompt_ids, self._end_ids)
        for count in range(1, most + 1):
            if cancelled():
                return
            # A device works on the next token while the host handles this one.
            following = self._advance() if decoder.ahead and count < most else None
            drawn = pending()
            reason = self._reason(drawn, count)
            selection = self._neurons.report(self._neurons.chosen) if count == reported else None
            shares = self._shares(count, last=bool(reason))
            yield Token(drawn.id, drawn.logprobs, reason, selection, None, shares, self._complete(drawn))
            # Asked again after the token was handed out, so that no token is computed in vain.
            if reason or cancelled():
                return
            self._require()
            pending = following or self._advance()

    def verified(
        self, logits_V: Tensor, prompt_ids: list[int], make_verifier: Callable[[int], Verifier]
    ) -> Iterator[Token]:
        """Tokens checked in passes: by the full model, or in mode fast by the kept neurons.

        Args:
            logits_V: the first token is drawn from these.
            make_verifier: makes the verifier from the first token, once another token is wanted.
        """
        first = self._decoder.begin(logits_V, self._sampling, prompt_ids, self._end_ids)()
        block, verified, verifier, count = Block([first]), Verified(), None, 0
        while True:
            chosen = block.chosen
            for number, drawn in enumerate(block.tokens, 1):
                if self._cancelled():
                    return
                count += 1
                reason = self._reason(drawn, count)
                selection = self._neurons.report(chosen)
                shares = block.shares
                if reason and verifier and not shares:
                    shares = verifier.shares()
                # A stop string may end the answer here, inside the block.
                counts = block.first(number, verified)
                yield Token(drawn.id, drawn.logprobs, reason, selection, counts, shares, self._complete(drawn))
                if reason or self._cancelled():
                    return
                self._require()
                chosen = None
            verifier = verifier or make_verifier(first.id)
            block = verifier.block(self._sampling.max_tokens - count)
            verified = verifier.verified

    def _advance(self) -> Callable[[], Drawn]:
        self._neurons.decode()
        return self._decoder.advance()

    def _shares(self, count: int, *, last: bool) -> Shares | None:
        """Shares that tokens have read, after ``count`` tokens. The first token is drawn from the prompt's logits."""
        if count == 1 or (self._decoder.ahead and not last and count % SHARES_EVERY):
            return None
        return self._decoder.shares()

    def _reason(self, drawn: Drawn, count: int) -> FinishReason | None:
        if drawn.id in self._end_ids or drawn.complete:
            return "stop"
        return "length" if count == self._sampling.max_tokens else None

    def _complete(self, drawn: Drawn) -> bool:
        """Whether the grammar ends the sequence. An end token that the model drew is not part of the text."""
        return drawn.complete and drawn.id not in self._end_ids
