"""From finished runs to the figures that a report shows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sb3_pwm.benchmark.alignment import common_steps, cut_to_shortest, has_learnt, row_due_at
from sb3_pwm.benchmark.origins import why_times_differ
from sb3_pwm.benchmark.results import FAILED, FINISHED, RUNNING, CurveRow, Run
from sb3_pwm.benchmark.specs import unknown_name
from sb3_pwm.benchmark.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    probability_interval,
    probability_of_improvement,
)

# The report shows these.
DIAGNOSTICS = (
    "train/value_calibration",
    "train/critic_gap",
    "train/value",
    "train/imagined_return",
    "rollout/ep_len_mean",
)
RANDOM = "random actions"
IN_A_ROW = 3  # evaluations
Untrained = Mapping[str, Mapping[str, Sequence[float]]]  # by environment and name


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
    :param success: mean share of the last evaluation's episodes that were successful at their last step; None where the
        environment does not say.
    :param success_once: the same at any step.
    :param seeds: number of finished seeds.
    :param cpu_seconds: mean CPU seconds of a run.
    :param wall_seconds: mean wall seconds of a run.
    :param reached: number of seeds that reached the target, after their first update.
    :param steps_to_target: median of the steps to the first evaluation that reached it, over those; None if none did.
    :param cpu_seconds_to_target: the same in CPU seconds.
    :param wall_seconds_to_target: the same in wall seconds.
    """

    final: Estimate
    lowest: float
    highest: float
    kept: float | None
    success: float | None
    success_once: float | None
    seeds: int
    cpu_seconds: float
    wall_seconds: float
    reached: int
    steps_to_target: float | None
    cpu_seconds_to_target: float | None
    wall_seconds_to_target: float | None


@dataclass(frozen=True)
class Curve:
    """Learning curves at the common steps where no seed lacks an evaluation.

    :param seeds: the seeds.
    :param env_steps: (n,) environment steps.
    :param cpu_seconds: (n_seeds, n) CPU seconds of training.
    :param wall_seconds: (n_seeds, n) wall seconds.
    :param returns: (n_seeds, n) returns.
    :param mean: (n,) means of the returns.
    :param low: (n,) lower bounds of the 95 % interval; NaN for one seed.
    :param high: (n,) upper bounds.
    """

    seeds: list[int]
    env_steps: np.ndarray
    cpu_seconds: np.ndarray
    wall_seconds: np.ndarray
    returns: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def positions(self, x: str) -> np.ndarray:
        """Return the (n_seeds, n) places on an axis: ``"env_steps"``, ``"cpu_seconds"`` or ``"wall_seconds"``."""
        return np.broadcast_to(getattr(self, x), self.returns.shape)


class Comparison:
    """Runs of several algorithms in several environments; an algorithm goes by its label, if it has one.

    The runs of an environment are compared after as many steps as its shortest run, and at the steps at which all of
    them were evaluated.

    :param runs: runs; those without the evaluation at their end are listed, and count for nothing else.
    :param method: the algorithm that the others are compared with.
    :param baseline: the algorithm whose mean final return is a score of 1.
    :param random_zero: whether a random policy's return is a score of 0; otherwise a return of 0 is.
    :param untrained: returns of untrained policies besides those of the runs' evaluations before the first step.
    :raises ValueError: if no run has finished, an algorithm is unknown or none of its runs has finished, a run is there
        twice, or the runs of an environment differ in its arguments or the episodes of an evaluation, or those of an
        algorithm in more.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        method: str,
        baseline: str,
        random_zero: bool = False,
        untrained: Untrained | None = None,
    ) -> None:
        self.given = list(runs)
        self.method, self.baseline, self.random_zero = method, baseline, random_zero
        self.untrained = untrained or {}
        self.finished: list[Run] = []
        self.others: list[Run] = []
        self.steps: dict[str, list[int]] = {}
        self.first: dict[tuple[str, str], list[CurveRow]] = defaultdict(list)
        for env in sorted({run.spec.env for run in runs}):
            self._align(env, cut_to_shortest([run for run in runs if run.spec.env == env]))
        if not self.finished:
            steps = f" {max(run.spec.steps for run in runs)} steps" if runs else ""
            raise ValueError(f"none of the {len(runs)} runs has finished{steps}")
        self.runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in self.finished:
            self.runs[run.spec.env][run.spec.name].append(run)
        self.envs = sorted(self.runs)
        self.algos = sorted({run.spec.name for run in self.finished}, key=lambda algo: (algo != method, algo))
        for what, name in (("method", method), ("baseline", baseline)):
            if name not in self.algos and (others := [run for run in self.others if run.spec.name == name]):
                failed = sum(run.state == FAILED for run in others)
                raise ValueError(
                    f"no run of the {what} {name} has finished ({failed} failed, {len(others) - failed} unfinished); "
                    "--steps N compares after fewer steps"
                )
            if name not in self.algos:
                raise unknown_name(f"{what} in these results", name, self.algos)
        self._check()

    def _align(self, env: str, runs: Sequence[Run]) -> None:
        """Sort the runs of an environment by whether they count, and keep of their evaluations the common ones."""
        whole = [run for run in runs if run.state == FINISHED and row_due_at(run, run.spec.steps)]
        # One that says it has finished, but lacks its last evaluation, has not.
        self.others += [
            replace(run, state=RUNNING) if run.state == FINISHED else run for run in runs if run not in whole
        ]
        if not whole:
            return
        self.steps[env] = common_steps(whole)
        for run in whole:
            self.first[env, run.spec.name].append(run.rows[0])
            rows = [row for step in self.steps[env] if (row := row_due_at(run, step))]
            self.finished.append(replace(run, rows=rows))

    def _check(self) -> None:
        from sb3_pwm.benchmark.settings import env_arguments  # here, so that --help need not wait for torch

        for env, by_algo in self.runs.items():
            runs = [run for of_algo in by_algo.values() for run in of_algo]
            episodes = {run.spec.eval_episodes for run in runs}
            if len(episodes) > 1:
                raise ValueError(
                    f"the runs in {env} differ in eval_episodes: {sorted(episodes)}; they cannot be compared"
                )
            arguments = [env_arguments(run.spec.hyperparameters) for run in runs]
            if any(given != arguments[0] for given in arguments):
                found = ", ".join(sorted({str(given or "none") for given in arguments}))
                raise ValueError(
                    f"the runs in {env} differ in the environment's arguments: {found}; they cannot be compared"
                )
            for algo, of_algo in by_algo.items():
                seeds = [run.spec.seed for run in of_algo]
                if len(set(seeds)) < len(seeds):
                    raise ValueError(f"{algo} in {env}: a seed is there more than once: {sorted(seeds)}")
                kinds = sorted({run.spec.algo for run in of_algo})
                if len(kinds) > 1:
                    raise ValueError(f"{algo} in {env} is {kinds[0]} in some runs and {kinds[1]} in others")
                if any(run.spec.hyperparameters != of_algo[0].spec.hyperparameters for run in of_algo):
                    raise ValueError(f"{algo} in {env}: the seeds have different hyperparameters")

    def why_no_times(self, env: str) -> str | None:
        """Say why the times in an environment cannot be compared; None if they can."""
        return why_times_differ([run for runs in self.runs[env].values() for run in runs])

    def references(self, env: str) -> dict[str, np.ndarray]:
        """Return the returns of policies that have learnt nothing: random actions, and untrained policies."""
        found: dict[str, list[float]] = {}
        returns = {run.record["random_return"] for runs in self.runs[env].values() for run in runs}
        if known := sorted(value for value in returns if value is not None):
            found[RANDOM] = known  # one value, unless the environment's version changed it
        for algo in self.algos:
            rows = self.first.get((env, algo), [])
            if at_start := [row.return_mean for row in rows if row.env_steps == 0]:
                found[f"untrained {algo}"] = at_start
        for name, values in self.untrained.get(env, {}).items():
            if len(values) > len(found.get(name, [])):
                found[name] = list(values)
        return {name: np.array(values) for name, values in found.items()}

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
        _, target = self.target(env)
        at = [_row_reaching(run, target) for run in runs]
        reached = [row for row in at if row is not None]

        def median(name: str) -> float | None:
            return float(np.median([getattr(row, name) for row in reached])) if reached else None

        return Cell(
            Estimate(*(float(value) for value in mean_interval(finals))),
            float(finals.min()),
            float(finals.max()),
            kept(self.curve(env, algo)),
            _success(runs, "success_rate"),
            _success(runs, "success_once_rate"),
            len(runs),
            float(np.mean([run.rows[-1].cpu_seconds for run in runs])),
            float(np.mean([run.rows[-1].wall_seconds for run in runs])),
            len(reached),
            median("env_steps"),
            median("cpu_seconds"),
            median("wall_seconds"),
        )

    def knows_success(self, env: str) -> bool:
        """Return whether any run of an environment says which episodes were successful."""
        return any(_success(runs, "success_rate") is not None for runs in self.runs[env].values())

    def missing(self, run: Run) -> list[int]:
        """Return the common steps at which a run lacks an evaluation."""
        return [step for step in self.steps[run.spec.env] if row_due_at(run, step) is None]

    def curve(self, env: str, algo: str) -> Curve | None:
        """Return the learning curves; None without runs."""
        runs = self.runs[env].get(algo)
        if not runs:
            return None
        lacking = {step for run in runs for step in self.missing(run)}
        steps = [step for step in self.steps[env] if step not in lacking]

        def values(name: str) -> np.ndarray:
            return np.array([[getattr(row_due_at(run, step), name) for step in steps] for run in runs], float)

        returns = values("return_mean")
        return Curve(
            [run.spec.seed for run in runs],
            np.array(steps),
            values("cpu_seconds"),
            values("wall_seconds"),
            returns,
            *mean_interval(returns),
        )

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
        return _estimate(probability_of_improvement(*strata), probability_interval(*strata), *strata)


def _success(runs: Sequence[Run], name: str) -> float | None:
    """Return the mean of a success rate in the last evaluations that have it."""
    rates = [rate for run in runs if (rate := run.rows[-1].logged.get(f"eval/{name}")) is not None]
    return float(np.mean(rates)) if rates else None


def _mean_of(logs: Sequence[dict[str, float]], name: str) -> float:
    return float(np.mean([logged.get(name, np.nan) for logged in logs]))


def kept(curve: Curve | None) -> float | None:
    """Return how much of the best a mean curve still has at its end, see :class:`Cell`."""
    if curve is None or len(curve.mean) < 2 * IN_A_ROW:
        return None
    in_a_row = np.convolve(curve.mean, np.full(IN_A_ROW, 1 / IN_A_ROW), "valid")
    best = float(in_a_row.max())
    return float(in_a_row[-1]) / best if best > 0 else None


def _estimate(value: float, interval: tuple[float, float], *sides: list[np.ndarray]) -> Estimate:
    """Leave the interval out where an algorithm has nothing to resample."""
    several = all(any(len(scores) > 1 for scores in strata) for strata in sides)
    return Estimate(value, *interval) if several else Estimate(value, np.nan, np.nan)


def _row_reaching(run: Run, target: float) -> CurveRow | None:
    return next((row for row in run.rows if row.return_mean >= target and has_learnt(run, row)), None)
