"""Distribution: values become percentiles. No I/O."""

import math
from collections.abc import Sequence

PERCENTILES = (50, 90, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile by nearest rank, which is a measured value. There must be a value; the order does not matter."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float | None:
    return percentile(values, 50) if values else None


def distribution(values: Sequence[float], scale: float = 1.0) -> dict[str, float] | None:
    """Count, mean, minimum, maximum and percentiles of values times ``scale``; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        **{f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES},
        "max": ordered[-1],
    }
    return {"count": len(ordered), **{name: round(value * scale, 3) for name, value in found.items()}}
