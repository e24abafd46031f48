"""How numbers are written in reports."""

import math
from collections.abc import Mapping

from sb3_pwm.benchmark.comparison import Comparison, Estimate


def number(value: float | None) -> str:
    """Write a number with as many digits as a reader needs; a dash for none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """Write a share in percent; a dash for none."""
    return "-" if share is None else f"{share:.0%}"


def estimate(value: Estimate) -> str:
    """Write a value with its interval."""
    text = number(value.value)
    return text if math.isnan(value.low) else f"{text} [{number(value.low)}, {number(value.high)}]"


def seeds(count: int) -> str:
    """Write a number of seeds."""
    return f"{count} seed{'' if count == 1 else 's'}"


def seeds_of(comparison: Comparison) -> str:
    """Say how many seeds there are."""
    counts = sorted({len(runs) for by_algo in comparison.runs.values() for runs in by_algo.values()})
    return seeds(counts[0]) if len(counts) == 1 else f"{counts[0]} to {seeds(counts[-1])}"


def seeds_by_algo(comparison: Comparison, algo: str) -> str:
    """Say how many seeds an algorithm has in the environments: ``3``, or ``1 to 3``."""
    counts = sorted({len(runs) for by_algo in comparison.runs.values() if (runs := by_algo.get(algo))})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def seeds_in(comparison: Comparison, env: str) -> str:
    """Say how many seeds the algorithms have in an environment."""
    counts = {algo: len(runs) for algo in comparison.algos if (runs := comparison.runs[env].get(algo))}
    if len(set(counts.values())) == 1:
        return seeds(next(iter(counts.values())))
    return seeds_of_each(counts)


def seeds_of_each(counts: Mapping[str, int | str]) -> str:
    """Say how many seeds each algorithm has."""
    return "seeds: " + ", ".join(f"{algo} {count}" for algo, count in counts.items())
