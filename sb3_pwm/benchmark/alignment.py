"""Make runs comparable: the same number of steps, and evaluations at the same steps."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sb3_pwm.benchmark.results import FAILED, FINISHED, RUNNING, UPDATES, CurveRow, Run
from sb3_pwm.benchmark.statistics import first_reaching


def cut(run: Run, steps: int) -> Run:
    """Return a run as if it had been one of fewer steps: until its first evaluation at or (in a rollout) after them.

    :param run: a run, finished or not; one that has not got so far becomes an unfinished one.
    :param steps: environment steps.
    :raises ValueError: if it was not evaluated there.
    """
    if steps % run.spec.eval_every and steps != run.spec.steps:
        raise ValueError(
            f"{run.spec.name} in {run.spec.env} is not evaluated after {steps} steps, but every {run.spec.eval_every}; "
            "choose a multiple as --steps"
        )
    index = first_reaching([row.env_steps for row in run.rows], steps)
    spec = replace(run.spec, steps=steps)
    if index is None:
        return replace(run, spec=spec, state=FAILED if run.state == FAILED else RUNNING)
    return replace(run, spec=spec, state=FINISHED, rows=run.rows[: index + 1])


def cut_to_shortest(runs: Sequence[Run]) -> list[Run]:
    """Cut the runs of an environment at the fewest steps of any finished one.

    :raises ValueError: if one was not evaluated there.
    """
    lengths = {run.spec.steps for run in runs if run.state == FINISHED}
    return [cut(run, min(lengths)) for run in runs] if len(lengths) > 1 else list(runs)


def common_steps(runs: Sequence[Run]) -> list[int]:
    """Return the steps at which all runs of an environment were to be evaluated; 0 if all were evaluated untrained."""
    every = math.lcm(*(run.spec.eval_every for run in runs))
    start = [0] if all(run.rows[0].env_steps == 0 for run in runs) else []
    return [*start, *range(every, runs[0].spec.steps, every), runs[0].spec.steps]


def row_due_at(run: Run, step: int) -> CurveRow | None:
    """Return the evaluation that was due at a step, which may come a little later (in a rollout); None if missing."""
    end = run.spec.steps
    following = math.inf if step >= end else min(step + run.spec.eval_every, end) if step else 1
    return next((row for row in run.rows if step <= row.env_steps < following), None)


def has_learnt(run: Run, row: CurveRow) -> bool:
    """Return whether the policy of an evaluation had been updated.

    Runs of earlier versions did not record it: then what counts is whether the steps exceed ``learning_starts``, or
    the first rollout of an on-policy algorithm.
    """
    if any(each.logged.get(UPDATES) for each in run.rows):
        return bool(row.logged.get(UPDATES))
    model = run.record.get("model") or {}
    starts = model.get("learning_starts")
    if not isinstance(starts, int):
        sizes = model.get("n_steps"), model.get("n_envs")
        starts = sizes[0] * sizes[1] if isinstance(sizes[0], int) and isinstance(sizes[1], int) else 0
    return row.env_steps > starts
