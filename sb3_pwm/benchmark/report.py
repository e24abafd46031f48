"""Show what a benchmark found: one self-contained web page, figures as PNG and SVG, tables for papers.

An example, after ``sb3-pwm benchmark --out results``:

    sb3-pwm report results --out report --label pwm=PWM sac=SAC
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_pwm.benchmark import figures
from sb3_pwm.benchmark.alignment import cut
from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.page import render
from sb3_pwm.benchmark.results import FINISHED, Run, read_runs, read_untrained
from sb3_pwm.benchmark.specs import unknown_name
from sb3_pwm.benchmark.tables import latex, markdown
from sb3_pwm.files.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``sb3-pwm report``."""
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="results folders of sb3-pwm benchmark")
    add("--out", type=Path, default=Path("report"), help="folder of the page and its files (default: %(default)s)")
    add("--env", nargs="+", metavar="ID", help="show these environments only (default: all)")
    add("--method", help="the algorithm that the others are compared with (default: pwm, or the first there is)")
    unit = "its mean final return is a normalised return of 1 (default: sac, or the first other than the method)"
    add("--baseline", help=unit)
    names = "how algorithms are written, such as pwm=PWM (default: as in the results folders)"
    add("--label", nargs="+", action="extend", default=[], metavar="NAME=TEXT", help=names)
    zero = "what is a normalised return of 0: a return of 0, or a random policy's (default: %(default)s)"
    add("--zero", choices=["0", "random"], default="0", help=zero)
    steps = "compare after this many environment steps (default: in each environment, those of the shortest run)"
    add("--steps", type=int, help=steps)


def run(options: argparse.Namespace) -> int:
    """Carry out ``sb3-pwm report``.

    :return: exit code.
    :raises ValueError: if a folder holds no runs, or runs that cannot be compared, or an option does not fit them.
    """
    runs: list[Run] = []
    untrained: dict[str, dict[str, list[float]]] = {}
    for folder in options.results:
        found, more = read_runs(folder), read_untrained(folder)
        if not found and not more:
            raise ValueError(f"{folder} holds no runs of sb3-pwm benchmark")
        runs += found
        untrained |= more
    if options.env is not None:
        known = {run.spec.env for run in runs}
        if unknown := sorted(set(options.env) - known):
            raise ValueError(f"no run in --env {', '.join(unknown)}; there are runs in {', '.join(sorted(known))}")
        runs = [run for run in runs if run.spec.env in options.env]
    if options.steps is not None:
        from sb3_pwm.checks import check_integer  # here, so that --help need not wait for torch

        check_integer("--steps", options.steps, 1)
        runs = [cut(run, options.steps) for run in runs]
    labels = read_labels(options.label)
    names = sorted({run.spec.name for run in runs if run.state == FINISHED})
    chosen = options.method or _default("pwm", [name for name in names if name != options.baseline] or names)
    others = [name for name in names if name != chosen] or names
    method, baseline = (labels.get(name, name) for name in (chosen, options.baseline or _default("sac", others)))
    for env, by_name in untrained.items():
        named = {f"untrained {name}": f"untrained {text}" for name, text in labels.items()}
        untrained[env] = {named.get(name, name): returns for name, returns in by_name.items()}
    comparison = Comparison(relabelled(runs, labels), method, baseline, options.zero == "random", untrained)
    write_report(comparison, options.out, shlex.join(["sb3-pwm", "report", *options.arguments]))
    print(options.out / "index.html")
    return 0


def _default(usual: str, names: Sequence[str]) -> str:
    """Return the usual algorithm if it is among those that there are, or if there are none; else the first."""
    return names[0] if names and usual not in names else usual


def read_labels(given: Sequence[str]) -> dict[str, str]:
    """Read ``--label``.

    :param given: values of the form ``NAME=TEXT``.
    :return: text by name.
    :raises ValueError: if a value is of another form.
    """
    labels = {}
    for value in given:
        name, _, text = value.partition("=")
        if not name or not text.strip() or text.startswith("_"):
            raise ValueError(f"--label {value}: allowed: NAME=TEXT, such as pwm=PWM; TEXT begins with no underscore")
        labels[name] = text
    return labels


def relabelled(runs: Sequence[Run], labels: dict[str, str]) -> list[Run]:
    """Return runs whose algorithms go by other names.

    :raises ValueError: if there is no such algorithm, or two would go by one name.
    """
    names = {run.spec.name: labels.get(run.spec.name, run.spec.name) for run in runs}
    for name in labels:
        if name not in names:
            raise unknown_name("algorithm of --label", name, names)
    if len(set(names.values())) < len(names):
        raise ValueError(f"--label gives two algorithms one name: {names}")
    return [
        replace(run, spec=replace(run.spec, label=names[run.spec.name])) if run.spec.name in labels else run
        for run in runs
    ]


def write_report(comparison: Comparison, out: Path, command: str) -> None:
    """Write ``index.html``, the figures and the tables.

    :param comparison: what is shown.
    :param out: folder; made if there is none.
    :param command: the command line, which the page states.
    """
    drawn = draw(comparison)
    images = {name: figures.saved(figure, "png") for name, figure in drawn.items()}
    page = render(comparison, images, command)
    for name, figure in drawn.items():
        write_bytes(out / f"{name}.png", images[name])
        write_bytes(out / f"{name}.svg", figures.saved(figure, "svg"))
    write_text(out / "table.md", markdown(comparison))
    write_text(out / "table.tex", latex(comparison))
    write_text(out / "index.html", page)


def draw(comparison: Comparison) -> "dict[str, Figure]":
    """Return the figures by name; times are drawn only where they can be compared."""
    timed = [env for env in comparison.envs if comparison.why_no_times(env) is None]
    drawn = {"curves_env_steps": figures.learning_curves(comparison, comparison.envs, "env_steps")}
    if timed:
        drawn |= {
            f"curves_{x}": figures.learning_curves(comparison, timed, x) for x in figures.AXES if x != "env_steps"
        }
    if comparison.scored_envs()[0]:
        drawn["iqm"] = figures.aggregate(comparison)
        drawn["profiles"] = figures.profiles(comparison)
        if len(comparison.algos) > 1:
            drawn["improvement"] = figures.improvement(comparison)
    return drawn
