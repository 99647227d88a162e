"""Speed: what the latency experiment found, as tables and as claims of the paper (section 5.2)."""

from collections.abc import Mapping
from typing import Any

from griffin.experiments.common.results import Claim, Table

PAPERS_SPARSITY = 0.5
# GRIFFIN's generation may take so much longer than magnitude's and still count as just as fast.
TOLERANCE = 0.05

Setting = Mapping[str, Any]


def speed_tables(found: Mapping[str, Any]) -> list[Table]:
    """One for each pair of lengths."""
    return [_table(setting) for setting in found["settings"]]


def _table(setting: Setting) -> Table:
    return Table(
        [
            "", "ms/token", "lowest - highest", "tokens/s", "x full", "x by bytes", "of limit", "selection ms",
            "break-even tokens", "generation s",
        ],
        [_cells(row) for row in setting["rows"]],
        f"A prompt of {setting['prompt_tokens']} tokens and {setting['tokens']} generated: medians of "
        f"{setting['rounds']} rounds. x by bytes: the speed-up if only bytes read counted; of limit: how near a token "
        "is to the time that reading its bytes takes; break-even: tokens after which the selection has paid for "
        "itself; generation: first token to last, selection included.",
    )  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[str]:
    token, selection = row["seconds_per_token"], row["selection_seconds"]
    even = row["break_even_tokens"]
    return [
        f"{row['name']} {row['sparsity'] * 100:.3g} %" if row["sparsity"] else str(row["name"]),
        f"{token['median'] * 1e3:.2f}",
        f"{token['lowest'] * 1e3:.2f} - {token['highest'] * 1e3:.2f}",
        f"{row['tokens_per_second']:.1f}",
        f"{row['speedup_over_full']:.2f}x",
        f"{row['ideal_speedup']:.2f}x",
        f"{row['of_limit'] * 100:.0f} %",
        f"{selection['median'] * 1e3:.1f}" if selection else "-",
        "-" if not selection else "never" if even is None else f"{even:.1f}",
        f"{row['generation_seconds']['median']:.2f}",
    ]


def speed_claims(found: Mapping[str, Any]) -> list[Claim]:
    """Judged by the generation phase at the longest lengths, at 50 % sparsity or the lowest that was timed."""
    setting = max(found["settings"], key=lambda setting: setting["prompt_tokens"] + setting["tokens"])
    rows = {(row["name"], row["sparsity"]): row for row in setting["rows"]}
    sparsities = sorted(sparsity for name, sparsity in rows if name == "GRIFFIN")
    if not sparsities:
        return []
    sparsity = PAPERS_SPARSITY if PAPERS_SPARSITY in sparsities else sparsities[0]
    griffin, full, magnitude = (
        rows.get(key) for key in (("GRIFFIN", sparsity), ("full", 0.0), ("magnitude", sparsity))
    )
    where = f"at {sparsity * 100:.3g} % sparsity, {setting['prompt_tokens']} + {setting['tokens']} tokens"
    claims = [_faster(griffin, full, where)] if griffin and full else []
    return [*claims, _as_fast(griffin, magnitude, where)] if griffin and magnitude else claims


def _faster(griffin: Mapping[str, Any], full: Mapping[str, Any], where: str) -> Claim:
    own, others = griffin["generation_seconds"], full["generation_seconds"]
    overlap = _overlap(own, others)
    caution = "; the ranges of the rounds overlap" if overlap else ""
    return Claim(
        "Generation is faster than with the full model: at 50 % sparsity, over long generations, 1.25x in Llama 2 13B "
        "and 1.16x in Gemma 7B (Table 3).",
        None if overlap else own["median"] < others["median"],
        f"{others['median'] / own['median']:.2f}x {where}: {own['median']:.2f} s, the full model "
        f"{others['median']:.2f} s{caution}.",
    )


def _as_fast(griffin: Mapping[str, Any], magnitude: Mapping[str, Any], where: str) -> Claim:
    own, others = griffin["generation_seconds"], magnitude["generation_seconds"]
    longer = own["median"] / others["median"] - 1
    return Claim(
        "GRIFFIN generates as fast as a model whose neurons are pruned once and for all by magnitude, the best case "
        "(Table 3).",
        longer <= TOLERANCE or _overlap(own, others),
        f"{own['median']:.2f} s {where}, magnitude {others['median']:.2f} s ({longer * 100:+.1f} %; up to "
        f"{TOLERANCE * 100:.0f} % longer, or within the rounds' ranges, counts as just as fast).",
    )


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["lowest"] <= other["highest"] and other["lowest"] <= one["highest"]
