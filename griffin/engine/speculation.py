"""Verifier: the modes guarded and lossless. Tokens are drafted cheaply, and the full model reads them in one pass.

A draw depends only on the logits, the request and the place in the sequence, see ``sampler``. So the full model's
logits with the noise of a place give the token that the full model alone would have generated there with the same seed.
A draft is right if it is that token (Daliri, Musco, Suresh 2024). So sampled tokens, too, have exactly the full model's
distribution, with any penalties and filters. All this holds up to rounding, see ``request.Verification``.

Shapes: B tokens of one block, V vocabulary.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from griffin.decode.sampler import Drawn
from griffin.engine.drafts import Drafts
from griffin.engine.pending import PendingSelection
from griffin.engine.refresh import Refresh
from griffin.engine.state import SequenceState
from griffin.engine.trees import Trees
from griffin.model.forward import logits
from griffin.request import Pruning, Verification


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification did for one sequence so far.

    tokens: generated ones, without the first, which comes from the prompt's pass.
    drafted, accepted: tokens that were proposed, and those of them that stayed.
    passes: full-model passes over a block.
    rollbacks: passes after which some of the block was thrown away.
    refreshes: how often other neurons were taken.
    parameters_read, bytes_read: by all steps and passes, of weights; for the mean per token, divide by ``tokens``.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    rollbacks: int = 0
    refreshes: int = 0
    parameters_read: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens that follow, at least one.

    chosen: the neurons that were taken for them, if others than before.
    """

    tokens: list[Drawn]
    chosen: PendingSelection | None = None


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
        ids: Sequence[int],
        end_ids: frozenset[int],
    ) -> None:
        """
        Args:
            state: has read all of ``ids`` but the last, which its decoder has just drawn.
            chosen: the neurons that draft, chosen by ``pruning``; None: drafts come from n-grams alone.
            end_ids: no token follows any of these.
        """
        self.verified = Verified()
        self._trees, self._state, self._decoder = trees, state, state.decoder
        self._verification, self._end_ids, self._id = verification, end_ids, ids[-1]
        self._drafts = Drafts(state, verification, ids, end_ids)
        refreshes = verification.refresh and chosen is not None and pruning.follows_text
        self._refresh = Refresh(state, pruning, trees.accounting.width) if refreshes else None
        self._chosen: PendingSelection | None = None
        # Neurons taken since the last block.
        self._taken: PendingSelection | None = None
        self._use(chosen)

    def block(self, room: int) -> Block:
        """The tokens that follow, at most ``room``. A token that ends the sequence is the last one."""
        steps = self._drafts.steps
        drafts = self._drafts.looked_up(room - 1)
        if drafts:
            tokens = self._read(drafts, guarded=False)
        elif self._chosen is None:
            tokens = [self._drafts.advance()()]
        else:
            self._take_others(self._chosen)
            guarded = self._verification.mode == "guarded"
            tokens = self._read(self._drafts.generated(room - 1), guarded=guarded)
        made = self._drafts.steps - steps
        self._count(tokens=len(tokens), parameters_read=made * self._active, bytes_read=made * self._step_bytes)
        self._id = tokens[-1].id
        self._drafts.extend(token.id for token in tokens)
        taken, self._taken = self._taken, None
        return Block(tokens, taken)

    def _read(self, drafts: list[int], guarded: bool) -> list[Drawn]:
        """Run the latest token and the drafts through the full model.

        Returns:
            The drafts that stay, and the full model's token after them.
        """
        length, ids_B = self._state.length, torch.tensor([self._id, *drafts], device=self._trees.device)
        with self._refresh.reading() if self._refresh else nullcontext() as count:
            rows_BV = logits(self._trees.full, ids_B, self._state.cache, len(ids_B))
        fit = self._acceptable(rows_BV[:-1], ids_B[1:]) if guarded else [False] * len(drafts)
        self._state.rewind(length)
        tokens = self._walk(rows_BV, drafts, fit)
        if self._refresh and count:
            count(len(tokens))
            self._refresh.seen(len(tokens))
        accepted = sum(token.id == draft for token, draft in zip(tokens, drafts, strict=False))
        self._count(
            drafted=len(drafts),
            accepted=accepted,
            passes=1,
            rollbacks=accepted < len(drafts),
            parameters_read=self._trees.accounting.total,
            bytes_read=self._trees.accounting.weight_bytes,
        )
        return tokens

    def _acceptable(self, rows_BV: Tensor, drafts_B: Tensor) -> list[bool]:
        """Whether the full model finds each draft probable enough beside its most probable token."""
        if not len(drafts_B):
            return []
        rows_BV = rows_BV.float()
        least_B = rows_BV.amax(dim=1) + math.log(self._verification.acceptance)
        found: list[bool] = (rows_BV.gather(1, drafts_B[:, None])[:, 0] >= least_B).tolist()
        return found

    def _walk(self, rows_BV: Tensor, drafts: list[int], fit: list[bool]) -> list[Drawn]:
        """Settle token by token, until one differs from its draft. The last row follows all drafts."""
        tokens: list[Drawn] = []
        for row_V, draft, taken in zip(rows_BV, [*drafts, None], [*fit, False], strict=True):
            # The token before this row stays, with its keys and values.
            self._state.accept()
            settled = self._decoder.take(draft, row_V) if taken and draft is not None else self._decoder.draw(row_V)
            tokens.append(settled())
            if tokens[-1].id != draft or draft in self._end_ids:
                break
        return tokens

    def _take_others(self, chosen: PendingSelection) -> None:
        """Other neurons, if the text calls for them by now."""
        other = self._refresh.other(chosen) if self._refresh else None
        if other is not None:
            self._use(other)
            self._count(refreshes=1)

    def _use(self, chosen: PendingSelection | None) -> None:
        self._state.decode_with(chosen)
        self._chosen = self._taken = chosen
        accounting = self._trees.accounting
        self._active = accounting.total if chosen is None else accounting.active_with(chosen.chosen)
        self._step_bytes = accounting.bytes_per_token(None if chosen is None else chosen.chosen)

    def _count(self, **more: int) -> None:
        self.verified = replace(self.verified, **{name: getattr(self.verified, name) + n for name, n in more.items()})
