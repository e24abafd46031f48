"""Draw README's learning curves from the CSV files of ``sb3-pwm benchmark``.

    python examples/research/readme_figures.py

One panel per environment: the return of deterministic evaluations over environment steps, the mean of the seeds and the
range between the lowest and the highest, and as a dashed line that of policies that have learnt nothing
(``examples/research/untrained.py``).
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from results_table import NAMES, read_rows

RESULTS = Path("docs/results")
ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
FOLDERS = ("baselines-100k", "tqc", "crossq", "default", "untrained")
COLOURS = {  # Okabe and Ito's, told apart by all eyes; PWM last, on top
    "ppo": "#56b4e9",
    "sac": "#009e73",
    "tqc_graphs": "#cc79a7",
    "crossq_graphs": "#e69f00",
    "pwm": "#0072b2",
}

Curve = dict[int, list[float]]


def read_curves() -> dict[tuple[str, str], Curve]:
    """Return, by environment and algorithm, the seeds' returns after each number of steps that all of them reached."""
    runs: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds = defaultdict(set)
    for row in (row for folder in FOLDERS for row in read_rows(RESULTS / folder)):
        key = row["environment"], row["algorithm"]
        runs[key][int(row["step"])].append(float(row["return_mean"]))
        seeds[key].add(row["seed"])
    return {
        key: {step: values for step, values in sorted(curve.items()) if len(values) == len(seeds[key])}
        for key, curve in runs.items()
    }


def draw(axes: Axes, environment: str, curves: dict[tuple[str, str], Curve]) -> None:
    axes.axhline(
        mean(curves[environment, "untrained pwm"][0]), color="#666666", linestyle="--", linewidth=1, label="untrained"
    )
    for algorithm, color in COLOURS.items():
        name, curve = NAMES[algorithm], curves[environment, algorithm]
        steps = [step / 1_000 for step in curve]
        low, high = [min(values) for values in curve.values()], [max(values) for values in curve.values()]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        width = 2.2 if name == "PWM" else 1.4
        axes.plot(steps, [mean(values) for values in curve.values()], color=color, linewidth=width, label=name)
    axes.set_title(environment, fontsize=10)
    axes.set_xlim(0, 100)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/results.png"))
    args = parser.parse_args()
    curves = read_curves()
    figure, panels = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
    for axes, environment in zip(panels.flat, ENVIRONMENTS, strict=False):
        draw(axes, environment, curves)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    panels[1, 2].axis("off")
    panels[1, 2].legend(handles[::-1], labels[::-1], loc="center", frameon=False)
    figure.supxlabel("thousand environment steps", fontsize=9)
    figure.supylabel("return", fontsize=9)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
