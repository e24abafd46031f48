"""From finished runs to the figures that a report shows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sb3_pwm.benchmark.results import FAILED, FINISHED, RUNNING, CurveRow, Run
from sb3_pwm.benchmark.specs import unknown_name
from sb3_pwm.benchmark.statistics import (
    bootstrap_interval,
    first_reaching,
    interquartile_mean,
    mean_interval,
    probability_interval,
    probability_of_improvement,
)

DIAGNOSTICS = ("train/value_calibration", "train/critic_gap", "rollout/ep_len_mean")  # the report shows these
IN_A_ROW = 3  # evaluations
COMMON = ("steps", "eval_episodes")  # what the runs of an environment must share


class Estimate(NamedTuple):
    """A value with its 95 % interval; the bounds are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One algorithm in one environment.

    :param final: mean over the seeds of the last evaluation's return.
    :param lowest: return of the lowest seed.
    :param highest: return of the highest seed.
    :param kept: mean of the last three evaluations over that of the best three in a row, of the mean curve: 1 is
        nothing forgotten. None with fewer than six evaluations, or where the best is not positive.
    :param seeds: number of finished seeds.
    :param cpu_seconds: mean CPU seconds of a run.
    :param wall_seconds: mean wall seconds of a run.
    :param reached: number of seeds that reached the target.
    :param steps_to_target: median of the steps to the first evaluation that reached it, over those; None if none did.
    :param cpu_seconds_to_target: the same in CPU seconds.
    :param wall_seconds_to_target: the same in wall seconds.
    """

    final: Estimate
    lowest: float
    highest: float
    kept: float | None
    seeds: int
    cpu_seconds: float
    wall_seconds: float
    reached: int
    steps_to_target: float | None
    cpu_seconds_to_target: float | None
    wall_seconds_to_target: float | None


@dataclass(frozen=True)
class Curve:
    """Mean learning curve over the seeds: (n,) arrays, ``half_width`` of the 95 % interval is NaN for one seed."""

    env_steps: np.ndarray
    cpu_seconds: np.ndarray
    wall_seconds: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray


def cut(run: Run, steps: int) -> Run:
    """Return a run as if it had been one of fewer steps: until its first evaluation at or (in a rollout) behind them.

    :param run: a run, finished or not; one that has not got so far becomes an unfinished one.
    :param steps: environment steps.
    :raises ValueError: if it was not evaluated there.
    """
    if steps % run.spec.eval_every and steps != run.spec.steps:
        raise ValueError(
            f"--steps={steps}: {run.spec.name} in {run.spec.env} is evaluated every {run.spec.eval_every} steps; "
            "choose a multiple"
        )
    index = first_reaching([row.env_steps for row in run.rows], steps)
    spec = replace(run.spec, steps=steps)
    if index is None:
        return replace(run, spec=spec, state=FAILED if run.state == FAILED else RUNNING)
    return replace(run, spec=spec, state=FINISHED, rows=run.rows[: index + 1])


class Comparison:
    """Runs of several algorithms in several environments; an algorithm goes by its label, if it has one.

    :param runs: runs; those that have not finished count for nothing but are listed.
    :param method: the algorithm that the others are compared with.
    :param baseline: the algorithm whose mean final return is a score of 1.
    :param random_zero: whether a random policy's return is a score of 0; otherwise a return of 0 is.
    :raises ValueError: if no run has finished, an algorithm is unknown or none of its runs has finished, a run is there
        twice, or the runs of an environment differ in its arguments, their steps or the episodes of an evaluation, or
        those of an algorithm in more.
    """

    def __init__(self, runs: Sequence[Run], method: str, baseline: str, random_zero: bool = False) -> None:
        self.finished = [run for run in runs if run.state == FINISHED and run.rows]
        self.others = [run for run in runs if run not in self.finished]
        if not self.finished:
            steps = f" {max(run.spec.steps for run in runs)} steps" if runs else ""
            raise ValueError(f"none of the {len(runs)} runs has finished{steps}")
        self.runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in self.finished:
            self.runs[run.spec.env][run.spec.name].append(run)
        self.envs = sorted(self.runs)
        self.algos = sorted({run.spec.name for run in self.finished}, key=lambda algo: (algo != method, algo))
        for what, name in (("method", method), ("baseline", baseline)):
            if name in {run.spec.name for run in self.others} - set(self.algos):
                raise ValueError(f"no run of the {what} {name} has finished; --steps N compares after fewer steps")
            if name not in self.algos:
                raise unknown_name(f"{what} in these results", name, self.algos)
        self.method, self.baseline, self.random_zero = method, baseline, random_zero
        self._check()

    def _check(self) -> None:
        for env, by_algo in self.runs.items():
            runs = [run for of_algo in by_algo.values() for run in of_algo]
            for name in COMMON:
                found = {getattr(run.spec, name): run for run in runs}
                if len(found) > 1:
                    raise ValueError(f"the runs in {env} differ in {name}: {sorted(found)}; they cannot be compared")
            arguments = {str(run.spec.hyperparameters.get("env_kwargs") or "none") for run in runs}
            if len(arguments) > 1:
                raise ValueError(
                    f"the runs in {env} differ in the environment's arguments: {', '.join(sorted(arguments))}; they "
                    "cannot be compared"
                )
            for algo, of_algo in by_algo.items():
                seeds = [run.spec.seed for run in of_algo]
                if len(set(seeds)) < len(seeds):
                    raise ValueError(f"{algo} in {env}: a seed is there more than once: {sorted(seeds)}")
                kinds = sorted({run.spec.algo for run in of_algo})
                if len(kinds) > 1:
                    raise ValueError(f"{algo} in {env} is {kinds[0]} in some runs and {kinds[1]} in others")
                for name in ("hyperparameters", "eval_every"):
                    if any(getattr(run.spec, name) != getattr(of_algo[0].spec, name) for run in of_algo):
                        raise ValueError(f"{algo} in {env}: the seeds have different {name}")

    def finals(self, env: str, algo: str) -> np.ndarray:
        """Return the (n_seeds,) returns of the last evaluations."""
        return np.array([run.rows[-1].return_mean for run in self.runs[env].get(algo, [])])

    def target(self, env: str) -> tuple[str, float]:
        """Return the best of the other algorithms and its mean final return; with no others, the method's own."""
        means = {algo: float(finals.mean()) for algo in self.algos if len(finals := self.finals(env, algo))}
        others = {algo: mean for algo, mean in means.items() if algo != self.method and np.isfinite(mean)}
        best = max(others, key=lambda algo: others[algo], default=self.method)
        return best, means.get(best, np.nan)

    def cell(self, env: str, algo: str) -> Cell | None:
        """Return an algorithm's figures in an environment; None if no run has finished there."""
        runs = self.runs[env].get(algo)
        if not runs:
            return None
        finals = self.finals(env, algo)
        mean, half_width = mean_interval(finals)
        _, target = self.target(env)
        at = [_row_reaching(run, target) for run in runs]
        reached = [row for row in at if row is not None]

        def median(name: str) -> float | None:
            return float(np.median([getattr(row, name) for row in reached])) if reached else None

        return Cell(
            Estimate(float(mean), float(mean - half_width), float(mean + half_width)),
            float(finals.min()),
            float(finals.max()),
            kept(self.curve(env, algo)),
            len(runs),
            float(np.mean([run.rows[-1].cpu_seconds for run in runs])),
            float(np.mean([run.rows[-1].wall_seconds for run in runs])),
            len(reached),
            median("env_steps"),
            median("cpu_seconds"),
            median("wall_seconds"),
        )

    def curve(self, env: str, algo: str) -> Curve | None:
        """Return the mean learning curve, at the steps of the run with the fewest evaluations; None without runs."""
        runs = self.runs[env].get(algo)
        if not runs:
            return None

        def column(run: Run, name: str) -> np.ndarray:
            return np.array([getattr(row, name) for row in run.rows], float)

        steps = column(min(runs, key=lambda run: len(run.rows)), "env_steps")

        def values(name: str) -> np.ndarray:
            return np.array([np.interp(steps, column(run, "env_steps"), column(run, name)) for run in runs])

        mean, half_width = mean_interval(values("return_mean"))
        return Curve(steps, values("cpu_seconds").mean(0), values("wall_seconds").mean(0), mean, half_width)

    def diagnostics(self) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
        """Return what algorithms logged of themselves half-way and at the end, as means over the seeds.

        :return: environment, algorithm, and two values per name; algorithms that have no value calibration are
            left out.
        """
        found = []
        for env in self.envs:
            for algo, runs in self.runs[env].items():
                half = [run.rows[(len(run.rows) - 1) // 2].logged for run in runs]
                end = [run.rows[-1].logged for run in runs]
                if not all(DIAGNOSTICS[0] in logged for logged in end):
                    continue
                values = {name: (_mean_of(half, name), _mean_of(end, name)) for name in DIAGNOSTICS}
                found.append((env, algo, values))
        return found

    def zero(self, env: str) -> float:
        """Return the return that is a score of 0."""
        if not self.random_zero:
            return 0.0
        return float(np.mean([run.record["random_return"] for run in self.runs[env][self.baseline]]))

    def scored_envs(self) -> tuple[list[str], dict[str, str]]:
        """Return the environments in which scores can be had, and why not for each of the others."""
        excluded = {}
        for env in self.envs:
            missing = [algo for algo in self.algos if not len(self.finals(env, algo))]
            unusable = [algo for algo in self.algos if not np.isfinite(self.finals(env, algo)).all()]
            if missing:
                excluded[env] = f"no finished run of {', '.join(missing)}"
            elif unusable:
                excluded[env] = f"a final return of {', '.join(unusable)} is not finite"
            elif self.finals(env, self.baseline).mean() <= self.zero(env):
                zero = f"a random policy's {self.zero(env):,.1f}" if self.random_zero else "0"
                excluded[env] = f"{self.baseline}'s mean final return is not above {zero}"
        return [env for env in self.envs if env not in excluded], excluded

    def scores(self, algo: str) -> list[np.ndarray]:
        """Return an algorithm's normalised final returns, one array over the seeds per scored environment."""
        strata = []
        for env in self.scored_envs()[0]:
            zero = self.zero(env)
            strata.append((self.finals(env, algo) - zero) / (self.finals(env, self.baseline).mean() - zero))
        return strata

    def iqm(self, algo: str) -> Estimate:
        """Return the interquartile mean of an algorithm's scores."""
        strata = self.scores(algo)
        value = float(interquartile_mean(np.concatenate(strata)))
        return _estimate(value, bootstrap_interval(strata, interquartile_mean), strata)

    def improvement(self, algo: str) -> Estimate:
        """Return the probability that the method improves on an algorithm."""
        strata = self.scores(self.method), self.scores(algo)
        return _estimate(probability_of_improvement(*strata), probability_interval(*strata), strata[0] + strata[1])


def _mean_of(logs: Sequence[dict[str, float]], name: str) -> float:
    return float(np.mean([logged.get(name, np.nan) for logged in logs]))


def kept(curve: Curve | None) -> float | None:
    """Return how much of the best a mean curve still has at its end, see :class:`Cell`."""
    if curve is None or len(curve.mean) < 2 * IN_A_ROW:
        return None
    in_a_row = np.convolve(curve.mean, np.full(IN_A_ROW, 1 / IN_A_ROW), "valid")
    best = float(in_a_row.max())
    return float(in_a_row[-1]) / best if best > 0 else None


def _estimate(value: float, interval: tuple[float, float], strata: list[np.ndarray]) -> Estimate:
    """Leave the interval out where there is nothing to resample."""
    several = any(len(scores) > 1 for scores in strata)
    return Estimate(value, *interval) if several else Estimate(value, np.nan, np.nan)


def _row_reaching(run: Run, target: float) -> CurveRow | None:
    index = first_reaching([row.return_mean for row in run.rows], target)
    return None if index is None else run.rows[index]
