"""Verifier: the modes guarded and lossless. Tokens are drafted cheaply, and the full model reads them in one pass.

What is drawn depends on the logits, the request and the place in the sequence alone, see ``sampler``. So a draw from
the full model's logits, with the noise of its place, is what the full model would have generated there by itself with
the same seed, and a draft is right if it is the same token (Daliri, Musco, Suresh 2024). Of sampled tokens, too, the
distribution is exactly the full model's, whatever the penalties and filters. All this is up to rounding, see
``verification``.

Shapes: B tokens of one block, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from griffin.decode.sampler import Drawn
from griffin.engine.chosen import Chosen
from griffin.engine.ngrams import NGrams
from griffin.engine.runner import Runner
from griffin.model.forward import logits
from griffin.request import ModeName, Pruning, Verification

# Drafts in one block where the request says nothing: of kept neurons by mode, and from n-grams.
PRUNED_TOKENS: dict[ModeName, int] = {"guarded": 6, "lossless": 3}
NGRAM_TOKENS = 8
# Tokens that the full model reads before neurons are chosen anew, which are taken if less than this part is the same.
REFRESH_TOKENS = 64
SAME_ENOUGH = 0.9


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification did for one sequence so far.

    tokens: generated, but for the first, which comes from the prompt's pass.
    drafted, accepted: tokens that were proposed, and those of them that stayed.
    passes: of the full model over a block.
    rollbacks: of these, after which some of the block was thrown away.
    refreshes: how often other neurons were taken.
    parameters_read: by all steps and passes; for each token, divide by ``tokens``.
    """

    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    rollbacks: int = 0
    refreshes: int = 0
    parameters_read: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens that follow, at least one. chosen: neurons that were taken for them, if others than before."""

    tokens: list[Drawn]
    chosen: Chosen | None = None


class Verifier:
    """Goes on with one sequence, block by block.

    verified: what it took so far.
    """

    def __init__(
        self,
        runner: Runner,
        verification: Verification,
        pruning: Pruning,
        chosen: Chosen | None,
        ids: Sequence[int],
        end_ids: frozenset[int],
    ) -> None:
        """
        Args:
            runner: has read all of ``ids`` but the last, which its decoder has just drawn.
            chosen: by ``pruning``, the neurons that draft; None: drafts come from n-grams alone.
            end_ids: nothing follows these.
        """
        self.verified = Verified()
        self._runner, self._verification, self._pruning, self._end_ids = runner, verification, pruning, end_ids
        self._id = ids[-1]
        self._ngrams = None if verification.draft == "pruned" else NGrams(ids)
        # Only neurons that are chosen by what the model reads can be others later, and not those that are drawn.
        reading = pruning.statistic == "flocking" and pruning.selection == "top_k" and pruning.reuse is None
        self._refreshes, self._unseen = verification.refresh and reading and chosen is not None, 0
        self._chosen: Chosen | None = None
        self._taken: Chosen | None = None
        self._use(chosen)

    def block(self, room: int) -> Block:
        """What follows, at most ``room`` tokens. Behind one that ends the sequence stands no other."""
        drafts = self._looked_up(room - 1)
        if drafts:
            tokens = self._read(drafts, guarded=False)
        elif self._chosen is None:
            tokens = [self._advance()()]
        else:
            self._refresh()
            tokens = self._read(self._generated(room - 1), guarded=self._verification.mode == "guarded")
        self._count(tokens=len(tokens))
        self._id = tokens[-1].id
        if self._ngrams is not None:
            self._ngrams.extend(token.id for token in tokens)
        taken, self._taken = self._taken, None
        return Block(tokens, taken)

    def _looked_up(self, room: int) -> list[int]:
        """Drafts from n-grams."""
        most = min(room, self._verification.draft_tokens or NGRAM_TOKENS)
        ids = self._ngrams.draft(most) if self._ngrams is not None else []
        ends = (number for number, id in enumerate(ids, 1) if id in self._end_ids)
        return ids[: next(ends, len(ids))]

    def _generated(self, room: int) -> list[int]:
        """Drafts of the kept neurons. Of what their steps leave nothing is used: the full model writes over it."""
        decoder, cache = self._runner.decoder, self._runner.cache
        most = min(room, self._verification.draft_tokens or PRUNED_TOKENS[self._verification.mode])
        ids: list[int] = []
        if most < 1:
            return ids
        length = cache.length
        decoder.mark()
        pending = self._advance()
        while True:
            following = self._advance() if decoder.ahead and len(ids) + 1 < most else None
            ids.append(pending().id)
            if len(ids) == most or ids[-1] in self._end_ids:
                break
            pending = following or self._advance()
        decoder.back()
        cache.length = length
        return ids

    def _advance(self) -> Callable[[], Drawn]:
        """One step of the decoder."""
        self._count(parameters_read=self._active)
        return self._runner.decoder.advance()

    def _read(self, drafts: list[int], guarded: bool) -> list[Drawn]:
        """The latest token and the drafts through the full model: the drafts that stay, and the token behind them."""
        runner, cache = self._runner, self._runner.cache
        length, ids_B = cache.length, torch.tensor([self._id, *drafts], device=self._runner.device)
        with runner.statistic.holding() if self._refreshes else nullcontext() as read:
            rows_BV = logits(runner.model, ids_B, cache, len(ids_B))
        fit = self._acceptable(rows_BV[:-1], ids_B[1:]) if guarded else [False] * len(drafts)
        cache.length = length
        tokens = self._walk(rows_BV, drafts, fit)
        if read is not None:
            read(len(tokens))
            self._unseen += len(tokens)
        accepted = sum(token.id == draft for token, draft in zip(tokens, drafts, strict=False))
        self._count(
            drafted=len(drafts),
            accepted=accepted,
            passes=1,
            rollbacks=accepted < len(drafts),
            parameters_read=runner.accounting.total,
        )
        return tokens

    def _acceptable(self, rows_BV: Tensor, drafts_B: Tensor) -> list[bool]:
        """Whether each draft is probable enough beside the most probable token, by the full model's own logits."""
        if not len(drafts_B):
            return []
        rows_BV = rows_BV.float()
        least_B = rows_BV.amax(dim=1) + math.log(self._verification.acceptance)
        found: list[bool] = (rows_BV.gather(1, drafts_B[:, None])[:, 0] >= least_B).tolist()
        return found

    def _walk(self, rows_BV: Tensor, drafts: list[int], fit: list[bool]) -> list[Drawn]:
        """Row by row, until a draft is not what it should be; the last row is behind all drafts."""
        decoder, cache = self._runner.decoder, self._runner.cache
        tokens: list[Drawn] = []
        for row_V, draft, taken in zip(rows_BV, [*drafts, None], [*fit, False], strict=True):
            # The token that this row is behind stays, with its keys and values.
            cache.length += 1
            settled = decoder.take(draft, row_V) if taken and draft is not None else decoder.draw(row_V)
            tokens.append(settled())
            if tokens[-1].id != draft or draft in self._end_ids:
                break
        return tokens

    def _refresh(self) -> None:
        """Choose neurons anew, where the full model has read enough since; others are taken if they are many."""
        if not self._refreshes or self._unseen < REFRESH_TOKENS:
            return
        self._unseen = 0
        runner = self._runner
        # First of all which they would be: what stands for the others takes longer to find.
        experts = runner.chooser.experts(runner.statistic, self._pruning)
        neurons = runner.accounting.width
        if self._chosen is None or overlap(experts, self._chosen.kept.layers, neurons) >= SAME_ENOUGH:
            return
        self._use(runner.select(self._pruning, runner.cache.length))
        self._count(refreshes=1)

    def _use(self, chosen: Chosen | None) -> None:
        accounting = self._runner.accounting
        self._runner.keep(chosen)
        self._chosen = self._taken = chosen
        self._active = (
            accounting.total if chosen is None else accounting.active(sum(chosen.kept.counts), chosen.kept.acting)
        )

    def _count(self, **more: int) -> None:
        self.verified = replace(self.verified, **{name: getattr(self.verified, name) + n for name, n in more.items()})


def overlap(first: Sequence[Tensor], second: Sequence[Tensor], width: int) -> float:
    """The Jaccard similarity of two choices of neurons, by layer: those that both have, of those that either has.

    Of most neurons any two choices have most in common: then it is that of the neurons which they leave out, and 0 if
    they leave out none, for nothing is known of those.

    Args:
        width: F.
    """
    pairs = zip(first, second, strict=True)
    shared = int(torch.stack([torch.isin(a_k, b_k, assume_unique=True).sum() for a_k, b_k in pairs]).sum())
    either = sum(map(len, first)) + sum(map(len, second)) - shared
    total = width * len(first)
    if 2 * shared > total:
        shared, either = total - either, total - shared
    return shared / max(1, either)
