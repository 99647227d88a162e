"""The paper's claims about speed (section 5.2), judged by what ``latency`` found."""

from collections.abc import Mapping
from typing import Any

from griffin.experiments.common.results import Claim

PAPERS_SPARSITY = 0.5
# GRIFFIN's generation counts as fast as magnitude's if it takes at most this fraction longer.
TOLERANCE = 0.05


def speed_claims(found: Mapping[str, Any]) -> list[Claim]:
    """Judge by the generation phase at the longest lengths, at 50 % sparsity or else the lowest timed sparsity."""
    setting = max(found["settings"], key=lambda setting: setting["prompt_tokens"] + setting["tokens"])
    rows = {(row["name"], row["sparsity"]): row for row in setting["rows"]}
    sparsities = sorted(sparsity for name, sparsity in rows if name == "GRIFFIN")
    if not sparsities:
        return []
    sparsity = PAPERS_SPARSITY if PAPERS_SPARSITY in sparsities else sparsities[0]
    griffin, full, magnitude = (
        rows.get(key) for key in (("GRIFFIN", sparsity), ("full", 0.0), ("magnitude", sparsity))
    )
    where = (
        f"At {sparsity * 100:.3g} % sparsity, to generate {setting['tokens']} tokens after a prompt of "
        f"{setting['prompt_tokens']}"
    )
    claims = [_faster(griffin, full, where)] if griffin and full else []
    return [*claims, _as_fast(griffin, magnitude, where)] if griffin and magnitude else claims


def _faster(griffin: Mapping[str, Any], full: Mapping[str, Any], where: str) -> Claim:
    own, others = griffin["generation_seconds"], full["generation_seconds"]
    overlap = _overlap(own, others)
    caution = " This may be chance, because the ranges of the rounds overlap." if overlap else ""
    return Claim(
        "GRIFFIN generates faster than the full model: 1.25x with Llama 2 13B and 1.16x with Gemma 7B, at 50 % "
        "sparsity over long generations (Table 3).",
        None if overlap else own["median"] < others["median"],
        f"{where}, GRIFFIN takes {own['median']:.2f} s and the full model {others['median']:.2f} s: "
        f"{others['median'] / own['median']:.2f}x.{caution}",
    )


def _as_fast(griffin: Mapping[str, Any], magnitude: Mapping[str, Any], where: str) -> Claim:
    own, others = griffin["generation_seconds"], magnitude["generation_seconds"]
    longer = own["median"] / others["median"] - 1
    return Claim(
        "GRIFFIN generates as fast as a model that was pruned by magnitude once for all prompts. This is the best case "
        "(Table 3).",
        longer <= TOLERANCE or _overlap(own, others),
        f"{where}, GRIFFIN takes {own['median']:.2f} s and magnitude {others['median']:.2f} s ({longer * 100:+.1f} %). "
        f"GRIFFIN counts as just as fast if it takes at most {TOLERANCE * 100:.0f} % longer, or if the ranges of the "
        "rounds overlap.",
    )


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["lowest"] <= other["highest"] and other["lowest"] <= one["highest"]
