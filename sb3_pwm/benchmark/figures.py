"""The figures of a report, drawn with Matplotlib."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_pwm.benchmark.comparison import RANDOM, Comparison, Curve, Estimate
from sb3_pwm.benchmark.statistics import performance_profile, profile_interval
from sb3_pwm.benchmark.texts import seeds_by_algo, seeds_in, seeds_of, seeds_of_each
from sb3_pwm.extras import missing_extra

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart also by those who see colours differently; the markers say it once more.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vPX*<"  # one more than colours: 72 different pairs
MOST_COLUMNS = 3
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


def saved(figure: "Figure", kind: str) -> bytes:
    """Return a figure as a file.

    :param kind: ``"png"`` or ``"svg"``.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sb3-pwm"}):  # the same figure is the same file
        figure.savefig(file, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def learning_curves(comparison: Comparison, envs: Sequence[str], x: str) -> "Figure":
    """Draw the return in each environment against steps or seconds: thin seeds, thick means, intervals as bands.

    :param envs: environments.
    :param x: ``"env_steps"``, ``"cpu_seconds"`` or ``"wall_seconds"``.
    """
    columns = min(len(envs), MOST_COLUMNS)
    rows = math.ceil(len(envs) / columns)
    figure, panels = _new_figure((3.7 * columns, 3.0 * rows), rows, columns)
    handles: dict[str, Artist] = {}
    for env, axes in zip(envs, panels, strict=False):
        for algo in comparison.algos:
            curve = comparison.curve(env, algo)
            if curve is not None:
                handles[algo] = _curve(axes, curve, x, style_of(comparison, algo))
        random = comparison.references(env).get(RANDOM)
        if random is not None:
            handles[RANDOM] = axes.axhline(random.mean(), color="#888888", linewidth=1, linestyle="--")
        axes.set_title(f"{env}\n{seeds_in(comparison, env)}", fontsize=10)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_thousands)
        axes.yaxis.set_major_formatter(_thousands)
        axes.set_xlabel(AXES[x])
    for axes in panels[len(envs) :]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel("return")
    _legend(figure, {name: handles[name] for name in (*comparison.algos, RANDOM) if name in handles})
    return figure


def _curve(axes: "Axes", curve: Curve, x: str, style: dict[str, Any]) -> "Artist":
    positions = curve.positions(x)
    for where, returns in zip(positions, curve.returns, strict=True):
        axes.plot(where, returns, color=style["color"], linewidth=0.7, alpha=0.5 if len(curve.seeds) > 1 else 1.0)
    every = max(1, len(curve.env_steps) // 8)
    width = 1.1 if len(curve.seeds) == 1 else 1.8
    line, *_ = axes.plot(positions.mean(0), curve.mean, markevery=every, markersize=4, linewidth=width, **style)
    axes.fill_between(positions.mean(0), curve.low, curve.high, color=style["color"], alpha=0.12, linewidth=0)
    return line


def aggregate(comparison: Comparison) -> "Figure":
    """Draw the IQM of each algorithm's normalised return with its interval."""
    figure, (axes,) = _new_figure((6, 1.2 + 0.38 * len(comparison.algos)))
    for position, algo in enumerate(comparison.algos):
        _interval(axes, comparison.iqm(algo), position, style_of(comparison, algo))
    _name_rows(axes, comparison.algos)
    axes.axvline(1, color="#888888", linewidth=1, linestyle=":")
    axes.set_title(_what_is_counted(comparison))
    axes.set_xlabel(f"IQM of the normalised return ({comparison.baseline}'s mean is 1)")
    return figure


def improvement(comparison: Comparison) -> "Figure":
    """Draw the probability that the method improves on each other algorithm."""
    others = [algo for algo in comparison.algos if algo != comparison.method]
    figure, (axes,) = _new_figure((6, 1.2 + 0.38 * len(others)))
    for position, algo in enumerate(others):
        _interval(axes, comparison.improvement(algo), position, style_of(comparison, algo))
    _name_rows(axes, others)
    axes.axvline(0.5, color="#888888", linewidth=1, linestyle=":")
    axes.set_xlim(-0.02, 1.02)
    axes.set_title(_what_is_counted(comparison))
    axes.set_xlabel(f"probability that {comparison.method} scores above")
    return figure


def profiles(comparison: Comparison) -> "Figure":
    """Draw which fraction of each algorithm's runs scores above a threshold."""
    figure, (axes,) = _new_figure((6, 3.5))
    scores = {algo: comparison.scores(algo) for algo in comparison.algos}
    highest = max(float(np.max(stratum)) for strata in scores.values() for stratum in strata)
    lowest = min(0.0, *(float(np.min(stratum)) for strata in scores.values() for stratum in strata))
    thresholds = np.linspace(lowest, 1.05 * highest, 201)
    handles: dict[str, Artist] = {}
    for algo, strata in scores.items():
        style = style_of(comparison, algo)
        fractions = performance_profile(np.concatenate(strata), thresholds)
        handles[algo], *_ = axes.plot(thresholds, fractions, markevery=25, markersize=4, linewidth=1.6, **style)
        axes.fill_between(
            thresholds, *profile_interval(strata, thresholds), color=style["color"], alpha=0.12, linewidth=0
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_what_is_counted(comparison))
    axes.set_xlabel("normalised return")
    axes.set_ylabel("fraction of runs above")
    _legend(figure, handles)
    return figure


def _what_is_counted(comparison: Comparison) -> str:
    count = len(comparison.scored_envs()[0])
    envs = f"{count} environment{'' if count == 1 else 's'}"
    each = {algo: seeds_by_algo(comparison, algo) for algo in comparison.algos}
    if len(set(each.values())) == 1:
        return f"{envs}, {seeds_of(comparison)} each"
    return f"{envs}; {seeds_of_each(each)}"


def _new_figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("a figure", "Matplotlib", "plot") from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _legend(figure: "Figure", handles: "dict[str, Artist]") -> None:
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=min(len(handles), 6), frameon=False
    )


def _interval(axes: "Axes", estimate: Estimate, position: int, style: dict[str, Any]) -> None:
    if not math.isnan(estimate.low):
        bar: dict[str, Any] = {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "butt"}  # other caps stick out
        axes.plot([estimate.low, estimate.high], [position, position], color=style["color"], **bar)
    axes.plot([estimate.value], [position], markersize=7, linestyle="none", **style)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _thousands(value: float, _: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
