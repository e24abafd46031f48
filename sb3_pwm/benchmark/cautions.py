"""What a reader must know before believing a comparison: one sentence for each reason to doubt it."""

from collections.abc import Iterator, Sequence

import numpy as np

from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.origins import revisions_of
from sb3_pwm.benchmark.results import FAILED, Run


def cautions(comparison: Comparison) -> list[str]:
    """Return the cautions, the gravest first; what is said of several environments alike is said once."""
    envs: dict[str, list[str]] = {}
    for find in (
        _not_finite,
        _below_what_came_first,
        _easy_target,
        _failed,
        _mixed_revisions,
        _mixed_steps,
        _missing,
        _mixed_evaluations,
        _alone,
    ):
        for env in comparison.envs:
            for text in find(comparison, env):
                envs.setdefault(text, []).append(env)
    return [f"{', '.join(named)}: {text}" for text, named in envs.items()]


def _not_finite(comparison: Comparison, env: str) -> Iterator[str]:
    """Find runs whose last evaluation is not finite: the algorithm then has no mean, and the environment no scores."""
    for algo in comparison.runs[env]:
        for run, final in zip(comparison.runs[env][algo], comparison.finals(env, algo), strict=True):
            if not np.isfinite(final):
                yield f"seed {run.spec.seed} of {algo} ends at {final}: {algo} has no mean, and is not a target"


def _easy_target(comparison: Comparison, env: str) -> Iterator[str]:
    """Find targets that policies reach without learning."""
    best, target = comparison.target(env)
    above = [name for name, returns in comparison.references(env).items() if returns.mean() >= target]
    if above:
        yield f"the target, {best}'s {target:,.1f}, says little: without learning {' and '.join(above)} had as much"


def _below_what_came_first(comparison: Comparison, env: str) -> Iterator[str]:
    """Find algorithms that end below where they began, or below policies that have learnt nothing."""
    references = comparison.references(env).items()
    for algo in comparison.runs[env]:
        final = float(comparison.finals(env, algo).mean())
        better = {name: float(returns.mean()) for name, returns in references}
        first = comparison.first[env, algo]
        if (step := max(row.env_steps for row in first)) > 0:  # at 0 it is one of the references
            better[f"its first evaluation after {step:,} steps"] = float(np.mean([row.return_mean for row in first]))
        if above := [f"{name} ({value:,.1f})" for name, value in better.items() if final < value]:
            yield f"{algo} ends at {final:,.1f}, below {' and '.join(above)}"


def _failed(comparison: Comparison, env: str) -> Iterator[str]:
    for algo in comparison.algos:
        failed = sum(run.state == FAILED for run in comparison.others if (run.spec.env, run.spec.name) == (env, algo))
        if failed:
            left = len(comparison.runs[env].get(algo, []))
            yield f"{failed} of {failed + left} runs of {algo} failed, and its figures leave them out"


def _mixed_revisions(comparison: Comparison, env: str) -> Iterator[str]:
    """Find algorithms whose runs are of several revisions, in one environment or from one to another."""
    for algo, runs in comparison.runs[env].items():
        found = sorted({revisions_of(run) for run in runs})
        every = sorted({revisions_of(run) for of_env in comparison.runs.values() for run in of_env.get(algo, [])})
        if len(found) > 1:
            yield f"the runs of {algo} are of {len(found)} revisions ({', '.join(found)})"
        elif len(every) > 1:
            yield f"the runs of {algo} are of other revisions than elsewhere ({', '.join(every)} in all)"


def _mixed_steps(comparison: Comparison, env: str) -> Iterator[str]:
    own = {(run.spec.name, run.spec.seed): run.spec.steps for run in comparison.given if run.spec.env == env}
    runs = [run for of_algo in comparison.runs[env].values() for run in of_algo]
    longer = [run for run in runs if own[run.spec.name, run.spec.seed] > run.spec.steps]
    if longer:
        at = f"{comparison.steps[env][-1]:,}"
        yield f"compared after {at} steps, as long as the shortest run; longer are runs of {_names(longer)}"


def _missing(comparison: Comparison, env: str) -> Iterator[str]:
    for algo, runs in comparison.runs[env].items():
        for run in runs:
            if steps := comparison.missing(run):
                at = ", ".join(f"{step:,}" for step in steps)
                yield f"seed {run.spec.seed} of {algo} has no evaluation at {at} steps; {algo}'s curve leaves them out"


def _mixed_evaluations(comparison: Comparison, env: str) -> Iterator[str]:
    by_interval: dict[int, list[Run]] = {}
    for runs in comparison.runs[env].values():
        for run in runs:
            by_interval.setdefault(run.spec.eval_every, []).append(run)
    if len(by_interval) > 1:
        each = ", ".join(f"every {steps:,} {_names(by_interval[steps])}" for steps in sorted(by_interval))
        yield f"evaluated at different steps ({each}); only the common ones are used"


def _alone(comparison: Comparison, env: str) -> Iterator[str]:
    alone = [run for runs in comparison.runs[env].values() if len(runs) == 1 for run in runs]
    if alone:
        yield f"one seed of {_names(alone)}: it says nothing of the next, and there is no interval"


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(run.spec.name for run in runs))
