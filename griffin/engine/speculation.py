"""Verifier: drafts are made cheaply, then a model reads them in one pass: the full model, or the kept neurons.

A draw depends only on the logits, the request and the place in the sequence, see ``sampler``. So a model's logits and
the noise of a place give the token that this model would have generated there with the same seed. A draft is right if
it is that token (Daliri, Musco, Suresh 2024). So sampled tokens also have exactly the model's distribution, with any
penalties and filters. If a step has passes, a pass gives the same bits as single steps; for other steps see
``request.Verification``.

Shapes: B tokens of one block, V vocabulary.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from griffin.decode.decoder import PASS_TOKENS
from griffin.decode.sampler import Drawn
from griffin.engine.ahead import Ahead
from griffin.engine.drafts import Drafts
from griffin.engine.ngrams import NGrams
from griffin.engine.pending import PendingSelection
from griffin.engine.refresh import Refresh
from griffin.engine.state import SequenceState
from griffin.engine.throttle import Throttle
from griffin.engine.trees import Trees
from griffin.model.forward import logits
from griffin.neurons import Kept
from griffin.request import Pruning, Verification
from griffin.thresholds import Shares

# If each token picks what it reads, the amount is asked for after the first block, and then after every so many. The
# host must wait for a device that works ahead to learn it, so it does not ask more often.
COUNTED_EVERY = 16


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification did for one sequence so far.

    tokens: generated tokens, without the first, which comes from reading the prompt.
    drafted, accepted: tokens that were proposed, and those of them that stayed.
    forced: tokens that the sequence's grammar forced and that a pass read. They do not count as drafted.
    passes: passes over a block: the drafts and the token before them. Passes over forced tokens do not count.
    rollbacks: passes that rejected part of their block.
    refreshes: how often other neurons were used.
    parameters_read, bytes_read: weights read by all steps and passes; divide by ``tokens`` for the mean per token. A
        pass reads a weight once. If each of its tokens picks what it reads, this is the most that it can have read.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    rollbacks: int = 0
    refreshes: int = 0
    parameters_read: int = 0
    bytes_read: int = 0
    forced: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens that follow, at least one.

    accepted, forced: how many of the first tokens were drafts, or were forced. At most one of the two is not 0.
    chosen: the neurons used for the block, if they differ from the previous ones.
    shares: what tokens have read, if kept neurons check, each token picks what it reads, and this was asked for.
    """

    tokens: list[Drawn]
    accepted: int = 0
    forced: int = 0
    chosen: PendingSelection | None = None
    shares: Shares | None = None

    def first(self, number: int, verified: Verified) -> Verified:
        """The figures of a sequence that ends after the first ``number`` tokens of this block.

        Args:
            verified: the figures with all tokens of the block.
        """
        return replace(
            verified,
            tokens=verified.tokens - (len(self.tokens) - number),
            accepted=verified.accepted - max(0, self.accepted - number),
            forced=verified.forced - max(0, self.forced - number),
        )


class Verifier:
    """Continues one sequence, block by block.

    verified: what it has done so far.
    """

    def __init__(
        self,
        trees: Trees,
        state: SequenceState,
        verification: Verification,
        pruning: Pruning,
        chosen: PendingSelection | None,
        latest: int,
        ngrams: NGrams | None,
        end_ids: frozenset[int],
    ) -> None:
        """
        Args:
            state: has read the sequence except for its latest token, which its decoder has just drawn.
            chosen: the neurons chosen by ``pruning``; None if only the full model is used. In mode fast the decoder
                uses them already.
            ngrams: of the sequence with the latest token; None if they do not draft.
            end_ids: no token follows any of these.
        """
        self.verified = Verified()
        self._trees, self._state, self._decoder = trees, state, state.decoder
        self._verification, self._end_ids, self._id = verification, end_ids, latest
        self._full = verification.mode != "fast"
        way = f"{verification.mode} {pruning.method if chosen else ''}"
        sparsity = pruning.sparsity if chosen else 0.0
        self._throttle = Throttle(state.costs.of(way, sparsity, PASS_TOKENS))
        self._drafts = Drafts(state, verification, ngrams, self._throttle, end_ids)
        self._single, self._ended = Ahead(state.decoder), 0.0
        refreshes = self._full and verification.refresh and chosen is not None and pruning.follows_text
        self._refresh = Refresh(state, pruning, trees.accounting.width) if refreshes else None
        self._blocks = 0
        self._chosen: PendingSelection | None = None
        # Neurons that replaced others since the last block.
        self._taken: PendingSelection | None = None
        self._use(chosen)

    def block(self, room: int) -> Block:
        """The next tokens, at most ``room``. A token that ends the sequence is the last one."""
        # Work that a device began earlier is timed from when it could begin.
        waiting, steps = self._single.waiting, self._drafts.steps + self._single.taken
        started = self._ended if waiting else time.perf_counter()
        before = self.verified
        forced = [] if waiting else self._drafts.forced(room - 1)
        drafts = forced if forced or waiting else self._drafts.looked_up(room - 1)
        if forced:
            tokens = self._read_forced(forced)
        elif drafts:
            tokens = self._read(drafts, guarded=False)
        elif self._chosen is None or not self._full:
            tokens = [self._single.take(another=self._another(room - 1))]
        else:
            self._take_others(self._chosen)
            guarded = self._verification.mode == "guarded"
            tokens = self._read(self._drafts.generated(room - 1), guarded=guarded)
        accepted, forced_now = self.verified.accepted - before.accepted, self.verified.forced - before.forced
        self._ended = time.perf_counter()
        self._throttle.spent(len(drafts), len(tokens), self._ended - started)
        made = self._drafts.steps + self._single.taken - steps
        self._count(tokens=len(tokens), parameters_read=made * self._active, bytes_read=made * self._step_bytes)
        self._id = tokens[-1].id
        self._drafts.extend(token.id for token in tokens)
        taken, self._taken = self._taken, None
        return Block(tokens, accepted, forced_now, taken, self._shares())

    def shares(self) -> Shares | None:
        """What tokens have read so far, if kept neurons check, each token picks what it reads, and it is counted."""
        return None if self._full else self._decoder.shares()

    def _another(self, room: int) -> bool:
        """Whether a device that works ahead may start another step, because no drafts will follow this token."""
        return self._decoder.ahead and room > 0 and not self._drafts.may_follow(room - 1)

    def _shares(self) -> Shares | None:
        """What tokens have read so far, if it is asked for. The step's counts are fetched only now and then."""
        self._blocks += 1
        due = self._blocks % COUNTED_EVERY == 1
        shares = self.shares() if due or not self._decoder.ahead else None
        if shares is not None and due:
            self._account(shares)
        return shares

    def _read_forced(self, forced: list[int]) -> list[Drawn]:
        """Run the latest token and the forced ones through the model that checks: all of them stay.

        Returns:
            The forced tokens, and that model's token after them.
        """
        tokens = self._settle(forced, guarded=False)
        self._count(forced=len(forced))
        return tokens

    def _read(self, drafts: list[int], guarded: bool) -> list[Drawn]:
        """Run the latest token and the drafts through the model that checks.

        Returns:
            The drafts that stay, and that model's token after them.
        """
        tokens = self._settle(drafts, guarded)
        accepted = sum(token.id == draft for token, draft in zip(tokens, drafts, strict=False))
        self._count(
            drafted=len(drafts),
            accepted=accepted,
            passes=1,
            rollbacks=accepted < len(drafts),
        )
        return tokens

    def _settle(self, drafts: list[int], guarded: bool) -> list[Drawn]:
        """A pass over the latest token and the drafts; then the tokens that stay, and one more."""
        length, ids = self._state.length, [self._id, *drafts]
        rows_BV, count = self._checked(ids)
        fit = self._acceptable(rows_BV[:-1], drafts) if guarded else [False] * len(drafts)
        self._state.rewind(length)
        tokens = self._walk(rows_BV, drafts, fit)
        count(len(tokens))
        self._count_pass(len(ids))
        return tokens

    def _count_pass(self, tokens: int) -> None:
        """Count a pass, which reads a weight once. If tokens pick what they read: their sum, at most everything."""
        parameters, read = self._trees.accounting.total, self._trees.accounting.weight_bytes
        if not self._full and self._chosen is not None:
            times = 1 if isinstance(self._chosen.chosen, Kept) else tokens
            parameters, read = min(parameters, times * self._active), min(read, times * self._step_bytes)
        self._count(parameters_read=parameters, bytes_read=read)

    def _checked(self, ids: list[int]) -> tuple[Tensor, Callable[[int], None]]:
        """The logits after each token, and a function that counts the first tokens in the statistic."""
        refresh, step = self._refresh, self._decoder.passes
        if step is not None and refresh is not None:
            rows_BV, seen_L = step.observe(ids, len(ids))
            return rows_BV, lambda tokens: refresh.count([seen[:tokens] for seen in seen_L], tokens)
        if step is not None:
            return step.read(ids, full=self._full), lambda tokens: None
        ids_B = torch.tensor(ids, device=self._trees.device)
        with refresh.reading() if refresh else nullcontext(lambda tokens: None) as count:
            return logits(self._trees.full, ids_B, self._state.cache, len(ids)), count

    def _acceptable(self, rows_BV: Tensor, drafts: list[int]) -> list[bool]:
        """For each draft, whether the full model finds it probable enough beside its most probable token."""
        if not drafts:
            return []
        rows_BV, drafts_B = rows_BV.float(), torch.tensor(drafts, device=rows_BV.device)
        least_B = rows_BV.amax(dim=1) + math.log(self._verification.acceptance)
        found: list[bool] = (rows_BV.gather(1, drafts_B[:, None])[:, 0] >= least_B).tolist()
        return found

    def _walk(self, rows_BV: Tensor, drafts: list[int], fit: list[bool]) -> list[Drawn]:
        """Decide token by token, until one differs from its draft. The last row follows all drafts."""
        tokens: list[Drawn] = []
        for row_V, draft, taken in zip(rows_BV, [*drafts, None], [*fit, False], strict=True):
            # The token before this row stays, with its keys and values.
            self._state.accept()
            settled = self._decoder.take(draft, row_V) if taken and draft is not None else self._decoder.draw(row_V)
            tokens.append(settled())
            if tokens[-1].id != draft or draft in self._end_ids or tokens[-1].complete:
                break
        return tokens

    def _take_others(self, chosen: PendingSelection) -> None:
        """Use other neurons, if the text has changed enough."""
        other = self._refresh.other(chosen) if self._refresh else None
        if other is not None:
            self._use(other)
            self._count(refreshes=1)

    def _use(self, chosen: PendingSelection | None) -> None:
        if self._full:
            self._state.decode_with(chosen)
        self._chosen = self._taken = chosen
        self._account(None)

    def _account(self, shares: Shares | None) -> None:
        """Set what a step of the decoder reads: ``shares`` if tokens pick what they read, else the plan."""
        accounting, chosen = self._trees.accounting, None if self._chosen is None else self._chosen.chosen
        self._active = accounting.total if chosen is None else accounting.active_with(chosen, shares)
        self._step_bytes = accounting.bytes_per_token(chosen, shares)

    def _count(self, **more: int) -> None:
        self.verified = replace(self.verified, **{name: getattr(self.verified, name) + n for name, n in more.items()})
