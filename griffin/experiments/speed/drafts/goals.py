"""Goals of the experiment, and whether a run reaches them."""

from collections.abc import Sequence

from griffin.experiments.common.experiment import Found
from griffin.experiments.common.results import Claim
from griffin.experiments.speed.contestants import LLAMA_CPP
from griffin.experiments.speed.drafts import equality, first_token, passes
from griffin.experiments.speed.drafts.bench import name_of
from griffin.experiments.speed.drafts.turns import Row, by_name
from griffin.experiments.speed.drafts.ways import FULL

# The least speed with drafts over that without: of edits with the full model, of pruned edits, and of free text.
EDITS_FULL, EDITS_PRUNED, CHATS = 1.8, 1.5, 0.98


def claims(found: Found) -> list[Claim]:
    judged = passes.claims(found["passes"]) if "passes" in found else []
    if "edits" in found:
        judged += _edit_claims(found["edits"], found["sparsity"])
    if "chats" in found:
        judged += [_faster(row, CHATS, "free text") for row in found["chats"] if _ours(row)]
    if "first-token" in found:
        judged += first_token.claims(found["first-token"])
    if "equal" in found:
        judged += equality.claims(found["equal"])
    return judged


def _edit_claims(rows: Sequence[Row], sparsity: float) -> list[Claim]:
    named, pruned = by_name(rows), name_of("griffin+", sparsity)
    judged = [
        _faster(named[f"{FULL}, drafts"], EDITS_FULL, "edits"),
        _faster(named[f"{pruned}, drafts"], EDITS_PRUNED, "edits"),
    ]
    own, peers = _speed(named[f"{FULL}, drafts"]), [row for row in rows if row["base"] == LLAMA_CPP != row["name"]]
    if peers:
        best = max(peers, key=_speed)
        judged.append(
            Claim(
                "Edits with drafts are faster than in llama.cpp with its drafts.",
                own > _speed(best),
                f"{own:.1f} tokens/s here and {_speed(best):.1f} in {best['name']}.",
            )
        )
    return judged


def _speed(row: Row) -> float:
    return row["tokens_per_second"] or 0.0


def _ours(row: Row) -> bool:
    return bool(row["name"] != row["base"] != LLAMA_CPP)


def _faster(row: Row, goal: float, text: str) -> Claim:
    ratio = row["over_base"]
    here = "no answer has two tokens" if ratio is None else f"{ratio:.2f} times"
    holds = None if ratio is None else ratio >= goal
    return Claim(f"{row['name']}: {text} has at least {goal:g} times the speed without drafts.", holds, f"{here}.")
