"""Draw README's learning curves from the CSV files of ``sb3-pwm benchmark``.

    python examples/research/readme_figures.py

One panel per environment: the return of deterministic evaluations over environment steps, the mean of the seeds and the
range between the lowest and the highest, and as a dashed line that of policies that have learnt nothing
(``examples/research/untrained.py``).
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path("docs/results")
ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
CURVES = {  # name -> folder and colour (Okabe and Ito's, told apart by all eyes); PWM last, on top
    "PPO": ("baselines-100k/{}/ppo", "#56b4e9"),
    "SAC": ("baselines-100k/{}/sac", "#009e73"),
    "TQC": ("tqc/{}/tqc_graphs", "#cc79a7"),
    "CrossQ": ("crossq/{}/crossq_graphs", "#e69f00"),
    "PWM": ("default/{}/pwm", "#0072b2"),
}


def read_curve(folder: Path) -> dict[int, list[float]]:
    """Return the seeds' mean returns for each number of steps at which all of them were evaluated."""
    returns: dict[int, list[float]] = defaultdict(list)
    paths = sorted(folder.glob("*/curve.csv"))
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                returns[int(row["env_steps"])].append(float(row["return_mean"]))
    return {step: values for step, values in sorted(returns.items()) if len(values) == len(paths)}


def read_untrained() -> dict[str, float]:
    """Return the mean return of untrained policies in each environment."""
    returns: dict[str, list[float]] = defaultdict(list)
    with (RESULTS / "untrained" / "untrained.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            returns[row["environment"]].append(float(row["return_mean"]))
    return {environment: mean(values) for environment, values in returns.items()}


def draw(axes: Axes, environment: str, untrained: float) -> None:
    axes.axhline(untrained, color="#666666", linestyle="--", linewidth=1, label="untrained")
    for name, (folder, color) in CURVES.items():
        curve = read_curve(RESULTS / folder.format(environment))
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
    untrained = read_untrained()
    figure, panels = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
    for axes, environment in zip(panels.flat, ENVIRONMENTS, strict=False):
        draw(axes, environment, untrained[environment])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    panels[1, 2].axis("off")
    panels[1, 2].legend(handles[::-1], labels[::-1], loc="center", frameon=False)
    figure.supxlabel("thousand environment steps", fontsize=9)
    figure.supylabel("return", fontsize=9)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
