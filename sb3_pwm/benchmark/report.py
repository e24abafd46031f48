"""Show what a benchmark found: one self-contained web page, and its figures as PNG files.

An example, after ``sb3-pwm benchmark --out results``:

    sb3-pwm report results --out report --steps 50000
"""

import argparse
import base64
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark import figures
from sb3_pwm.benchmark.alignment import cut
from sb3_pwm.benchmark.comparison import Comparison, Estimate
from sb3_pwm.benchmark.results import FAILED, Run, read_runs
from sb3_pwm.benchmark.specs import as_file_name
from sb3_pwm.files.atomic import write_bytes, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``sb3-pwm report``."""
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="results folders of sb3-pwm benchmark")
    add("--out", type=Path, default=Path("report"), help="folder of the page and its files (default: %(default)s)")
    add("--env", nargs="+", metavar="ID", help="show these environments only (default: all)")
    add("--method", default="pwm", help="the algorithm that the others are compared with (default: %(default)s)")
    add("--baseline", default="sac", help="its mean final return is a normalised return of 1 (default: %(default)s)")
    zero = "what is a normalised return of 0: a return of 0, or a random policy's (default: %(default)s)"
    add("--zero", choices=["0", "random"], default="0", help=zero)
    steps = "compare after this many environment steps, longer runs are cut there (default: to the end)"
    add("--steps", type=int, help=steps)


def run(options: argparse.Namespace) -> int:
    """Carry out ``sb3-pwm report``.

    :return: exit code.
    :raises ValueError: if a folder holds no runs, or runs that cannot be compared.
    """
    runs: list[Run] = []
    for folder in options.results:
        found = read_runs(folder)
        if not found:
            raise ValueError(f"{folder} holds no runs of sb3-pwm benchmark")
        runs += found
    if options.env is not None:
        known = {run.spec.env for run in runs}
        if unknown := sorted(set(options.env) - known):
            raise ValueError(f"no run in --env {', '.join(unknown)}; there are runs in {', '.join(sorted(known))}")
        runs = [run for run in runs if run.spec.env in options.env]
    if options.steps is not None:
        from sb3_pwm.checks import check_integer  # here, so that --help need not wait for torch

        check_integer("--steps", options.steps, 1)
        runs = [cut(run, options.steps) for run in runs]
    comparison = Comparison(runs, options.method, options.baseline, random_zero=options.zero == "random")
    write_report(comparison, options.out, shlex.join(["sb3-pwm", "report", *options.arguments]))
    print(options.out / "index.html")
    return 0


def write_report(comparison: Comparison, out: Path, command: str) -> None:
    """Write ``index.html`` and its figures.

    :param comparison: what is shown.
    :param out: folder; made if there is none.
    :param command: the command line, which the page states.
    """
    page = render(comparison, images := draw(comparison), command)
    for name, image in images.items():
        write_bytes(out / f"{name}.png", image)
    write_text(out / "index.html", page)


def draw(comparison: Comparison) -> dict[str, bytes]:
    """Return the figures as PNG files, by name."""
    images = {
        curve_name(env, x): figures.learning_curves(comparison, env, x) for env in comparison.envs for x in figures.AXES
    }
    if comparison.scored_envs()[0]:
        images["iqm"] = figures.aggregate(comparison)
        images["profiles"] = figures.profiles(comparison)
        if len(comparison.algos) > 1:
            images["improvement"] = figures.improvement(comparison)
    return images


def curve_name(env: str, x: str) -> str:
    """Return the name of an environment's learning curves against ``x``."""
    return f"{as_file_name(env)}_{x}"


def render(comparison: Comparison, images: dict[str, bytes], command: str) -> str:
    """Return the page.

    :raises ImportError: if Jinja is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("reports need Jinja: pip install 'sb3-pwm[plot]'") from error
    loader = PackageLoader("sb3_pwm.benchmark", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "estimate": estimate}
    others = [algo for algo in comparison.algos if algo != comparison.method]
    envs, excluded = comparison.scored_envs()
    # What was interrupted may have gone on elsewhere.
    parts = [part for run in comparison.finished for part in (*run.record.get("earlier", []), run.record)]
    return environment.get_template("report.html").render(
        comparison=comparison,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
        curve_name=curve_name,
        envs=envs,
        excluded=excluded,
        iqm={algo: comparison.iqm(algo) for algo in comparison.algos} if envs else {},
        improvement={algo: comparison.improvement(algo) for algo in others} if envs else {},
        seeds=seeds_of(comparison),
        longer=any(run.record["specification"]["steps"] != run.spec.steps for run in comparison.finished),
        specs=settings_of(comparison.finished),
        failed=[run for run in comparison.others if run.state == FAILED],
        unfinished=[run for run in comparison.others if run.state != FAILED],
        machines=distinct(part["processor"] for part in parts),
        threads=distinct(str(run.spec.threads) for run in comparison.finished),
        versions=distinct(versions_of(part) for part in parts),
        commands=[*distinct(part["command"] for part in parts), command],
    )


def distinct(values: Any) -> list[Any]:
    """Return values without repetitions, in the order of their first occurrences."""
    return list(dict.fromkeys(values))


def versions_of(record: dict[str, Any]) -> str:
    """Return the versions that a run, or a part of it, was made with, in one line."""
    revision = record["git_revision"]
    parts = [f"{name} {version}" for name, version in record["versions"].items()]
    return ", ".join(parts + ([f"git revision {revision}"] if revision else []))


def seeds_of(comparison: Comparison) -> str:
    """Say how many seeds there are."""
    counts = sorted({len(runs) for by_algo in comparison.runs.values() for runs in by_algo.values()})
    text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text} seed{'' if counts == [1] else 's'}"


def settings_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return for each algorithm and environment what it was made with."""
    found = {(run.spec.name, run.spec.env): run for run in runs}
    return [
        {
            "algo": name if run.spec.label is None else f"{name}={run.spec.algo}",
            "env": env,
            "source": run.spec.source,
            "model": json.dumps(run.record.get("model", {}), indent=1),
        }
        for (name, env), run in sorted(found.items())
    ]


def number(value: float | None) -> str:
    """Write a number with as many digits as a reader needs; a dash for none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"


def estimate(value: Estimate) -> str:
    """Write a value with its interval."""
    text = number(value.value)
    return text if math.isnan(value.low) else f"{text} [{number(value.low)}, {number(value.high)}]"
