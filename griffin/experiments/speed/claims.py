"""The paper's claims about speed (section 5.2), judged by what ``latency`` found."""

from collections.abc import Mapping
from typing import Any

from griffin.experiments.common.results import Claim

PAPERS_SPARSITY = 0.5
# GRIFFIN's generation counts as fast as magnitude's if it takes at most this fraction longer.
TOLERANCE = 0.05


def speed_claims(found: Mapping[str, Any]) -> list[Claim]:
    """Judge by the generation phase at the longest lengths, at 50 % sparsity or else the lowest that was timed."""
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
