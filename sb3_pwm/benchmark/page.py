"""The page of a report: what the template and its script show."""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sb3_pwm.benchmark.cautions import cautions
from sb3_pwm.benchmark.comparison import RANDOM, Comparison, Curve
from sb3_pwm.benchmark.figures import AXES, style_of
from sb3_pwm.benchmark.origins import origins, parts_of
from sb3_pwm.benchmark.results import FAILED, Run
from sb3_pwm.benchmark.texts import estimate, number, percent, seeds_by_algo, seeds_in, seeds_of
from sb3_pwm.extras import missing_extra


def render(comparison: Comparison, images: dict[str, bytes], command: str) -> str:
    """Return the page: one file that needs no other and no network.

    :param comparison: what is shown.
    :param images: figures as PNG files, by name.
    :param command: the command line, which the page states.
    :raises ImportError: if Jinja is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise missing_extra("a report", "Jinja", "plot") from error
    loader = PackageLoader("sb3_pwm.benchmark", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "estimate": estimate}
    others = [algo for algo in comparison.algos if algo != comparison.method]
    found = {env: {algo: comparison.cell(env, algo) for algo in comparison.algos} for env in comparison.envs}
    envs, excluded = comparison.scored_envs()
    parts = [part for run in comparison.finished for part in parts_of(run)]
    return environment.get_template("report.html").render(
        comparison=comparison,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
        data=chart_data(comparison),
        cautions=cautions(comparison),
        cells={env: {algo: cell for algo, cell in of_env.items() if cell} for env, of_env in found.items()},
        origins=origins([*comparison.finished, *comparison.others], comparison.algos),
        no_times={env: reason for env in comparison.envs if (reason := comparison.why_no_times(env))},
        envs=envs,
        excluded=excluded,
        iqm={algo: comparison.iqm(algo) for algo in comparison.algos} if envs else {},
        improvement={algo: comparison.improvement(algo) for algo in others} if envs else {},
        seeds=seeds_of(comparison),
        seeds_of_each={algo: seeds_by_algo(comparison, algo) for algo in comparison.algos},
        longer=any(run.record["specification"]["steps"] != run.spec.steps for run in comparison.finished),
        specs=settings_of(comparison.finished),
        failed=[run for run in comparison.others if run.state == FAILED],
        unfinished=[run for run in comparison.others if run.state != FAILED],
        versions=distinct(versions_of(part) for part in parts),
        commands=[*distinct(part["command"] for part in parts), command],
    )


def chart_data(comparison: Comparison) -> dict[str, Any]:
    """Return what the page's script draws: learning curves of all seeds, as JSON values."""
    panels = []
    for env in comparison.envs:
        axes = list(AXES) if comparison.why_no_times(env) is None else ["env_steps"]
        random = comparison.references(env).get(RANDOM)
        curves = {algo: curve for algo in comparison.algos if (curve := comparison.curve(env, algo))}
        panel: dict[str, Any] = {"env": env, "seeds": seeds_in(comparison, env), "axes": axes}
        panel["random"] = None if random is None else _rounded(random.mean())
        panels.append(panel | {"curves": {algo: _curve_data(curve, axes) for algo, curve in curves.items()}})
    colors = {algo: style_of(comparison, algo)["color"] for algo in comparison.algos}
    return {"axes": AXES, "colors": colors, "panels": panels}


def _curve_data(curve: Curve, axes: Sequence[str]) -> dict[str, Any]:
    return {
        "seeds": curve.seeds,
        "positions": {x: _rounded(curve.positions(x)) for x in axes},
        "returns": _rounded(curve.returns),
        **{name: _rounded(getattr(curve, name)) for name in ("mean", "low", "high")},
    }


def _rounded(values: Any) -> Any:
    """Return numbers with six digits; None for those that are not finite, which JSON does not know."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{values:.6g}") if math.isfinite(values) else None


def distinct(values: Iterable[str]) -> list[str]:
    """Return values without repetitions, in the order of their first occurrences."""
    return list(dict.fromkeys(values))


def versions_of(record: dict[str, Any]) -> str:
    """Return the versions that a run, or a part of it, was made with, in one line."""
    revision = record["git_revision"]
    parts = [f"{name} {version}" for name, version in record["versions"].items()]
    return ", ".join(parts + ([f"git revision {revision}"] if revision else []))


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
