"""The figures of a report, drawn with Matplotlib."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_pwm.benchmark.comparison import Comparison, Estimate
from sb3_pwm.benchmark.statistics import performance_profile, profile_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart also by those who see colours differently; the markers say it once more.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vPX*<"  # one more than colours: 72 different pairs
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "legend.frameon": False,
    "savefig.dpi": 150,
}
AXES = {
    "env_steps": "environment steps",
    "cpu_seconds": "CPU seconds of training",
    "wall_seconds": "wall seconds of training",
}


def style_of(comparison: Comparison, algo: str) -> dict[str, Any]:
    """Return colour and marker of an algorithm, the same in every figure."""
    index = comparison.algos.index(algo)
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def to_png(figure: "Figure") -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def learning_curves(comparison: Comparison, env: str, x: str) -> bytes:
    """Draw the return in an environment against steps or seconds.

    :param env: environment.
    :param x: ``"env_steps"``, ``"cpu_seconds"`` or ``"wall_seconds"``.
    """
    figure, axes = _new_figure((4.4, 3.2))
    for algo in comparison.algos:
        curve = comparison.curve(env, algo)
        if curve is None:
            continue
        style, positions = style_of(comparison, algo), curve.positions(x).mean(0)
        every = max(1, len(positions) // 8)
        axes.plot(positions, curve.mean, label=algo, markevery=every, markersize=4, linewidth=1.6, **style)
        axes.fill_between(positions, curve.low, curve.high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_ylim(*_range_of_returns(comparison, env))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_thousands)
    axes.yaxis.set_major_formatter(_thousands)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel(f"return in {env}")
    _legend(figure, axes)
    return to_png(figure)


def aggregate(comparison: Comparison) -> bytes:
    """Draw the IQM of each algorithm's normalised return with its interval."""
    figure, axes = _new_figure((6, 0.9 + 0.38 * len(comparison.algos)))
    for position, algo in enumerate(comparison.algos):
        _interval(axes, comparison.iqm(algo), position, style_of(comparison, algo))
    _name_rows(axes, comparison.algos)
    axes.axvline(1, color="#888888", linewidth=1, linestyle=":")
    axes.set_xlabel(f"IQM of the normalised return ({comparison.baseline}'s mean is 1)")
    return to_png(figure)


def improvement(comparison: Comparison) -> bytes:
    """Draw the probability that the method improves on each other algorithm."""
    others = [algo for algo in comparison.algos if algo != comparison.method]
    figure, axes = _new_figure((6, 0.9 + 0.38 * len(others)))
    for position, algo in enumerate(others):
        _interval(axes, comparison.improvement(algo), position, style_of(comparison, algo))
    _name_rows(axes, others)
    axes.axvline(0.5, color="#888888", linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"probability that {comparison.method} scores above")
    return to_png(figure)


def profiles(comparison: Comparison) -> bytes:
    """Draw which fraction of each algorithm's runs scores above a threshold."""
    figure, axes = _new_figure((6, 3.2))
    scores = {algo: comparison.scores(algo) for algo in comparison.algos}
    highest = max(float(np.max(stratum)) for strata in scores.values() for stratum in strata)
    lowest = min(0.0, *(float(np.min(stratum)) for strata in scores.values() for stratum in strata))
    thresholds = np.linspace(lowest, 1.05 * highest, 201)
    for algo, strata in scores.items():
        style = style_of(comparison, algo)
        fractions = performance_profile(np.concatenate(strata), thresholds)
        axes.plot(thresholds, fractions, label=algo, markevery=25, markersize=4, linewidth=1.6, **style)
        axes.fill_between(
            thresholds, *profile_interval(strata, thresholds), color=style["color"], alpha=0.12, linewidth=0
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("normalised return")
    axes.set_ylabel("fraction of runs above")
    _legend(figure, axes)
    return to_png(figure)


def _new_figure(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need Matplotlib: pip install 'sb3-pwm[plot]'") from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.add_subplot()


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), frameon=False)


def _interval(axes: "Axes", estimate: Estimate, position: int, style: dict[str, Any]) -> None:
    if not math.isnan(estimate.low):
        bar: dict[str, Any] = {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "butt"}  # other caps stick out
        axes.plot([estimate.low, estimate.high], [position, position], color=style["color"], **bar)
    axes.plot([estimate.value], [position], markersize=7, linestyle="none", **style)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _range_of_returns(comparison: Comparison, env: str) -> tuple[float, float]:
    """Return the range of the runs' returns: an interval over few seeds may be much wider."""
    rows = [row for of_algo in comparison.runs[env].values() for run in of_algo for row in run.rows]
    returns = [row.return_mean for row in rows if math.isfinite(row.return_mean)] or [0.0]
    margin = 0.05 * (max(returns) - min(returns)) or 1.0
    return min(returns) - margin, max(returns) + margin


def _thousands(value: float, _: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
