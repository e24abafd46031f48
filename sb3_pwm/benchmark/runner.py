"""Carry out the runs of a plan, and show how far they are."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sb3_pwm.benchmark.engines import Engine, Job, make_job
from sb3_pwm.benchmark.jobs import KILLED, PROGRESS, WAITING, Board, run_jobs
from sb3_pwm.benchmark.results import (
    FAILED,
    FINISHED,
    IN_USE,
    IN_USE_CODE,
    RUNNING,
    CurveRow,
    read_curve,
    read_run,
    unfinished,
)
from sb3_pwm.benchmark.specs import RunSpec


class Runs(Board):
    """The state of every run of a plan, read from the results folder, which any engine writes.

    :param plan: the runs.
    :param results: results folder.
    :param waiting: those of them that have not finished.
    """

    header = ("environment", "algorithm", "seed", "state", "steps", "return", "CPU s")
    longest = ("", "", "", FINISHED, *(" " * width for width in (22, 9, 7)))
    n_left = 4

    def __init__(self, plan: Sequence[RunSpec], results: Path, waiting: Sequence[RunSpec]) -> None:
        self.folders = {str(spec.folder(results.resolve())): spec for spec in plan}
        super().__init__({f: WAITING if spec in waiting else FINISHED for f, spec in self.folders.items()})

    def passed(self, folder: str) -> list[list[str]]:
        """Return the rows of a run as it was at its evaluations."""
        return [self._texts(folder, RUNNING, found.env_steps, found) for found in read_curve(Path(folder))]

    def row(self, folder: str) -> list[str]:
        """Return the row of a run as it is now."""
        state = self.states[folder]
        curve = [] if state == WAITING else read_curve(Path(folder))
        steps = curve[-1].env_steps if curve else 0
        if state == RUNNING:
            steps = max(steps, _noted_steps(Path(folder)))
        return self._texts(folder, state, steps, curve[-1] if curve else None)

    def _texts(self, folder: str, state: str, steps: int, last: CurveRow | None) -> list[str]:
        spec = self.folders[folder]
        done = f"{steps:,} / {spec.steps:,} ({100 * steps // spec.steps} %)"
        numbers = [f"{last.return_mean:,.1f}", f"{last.cpu_seconds:,.0f}"] if last else ["", ""]
        return [spec.env, spec.name, str(spec.seed), state, done, *numbers]


def _noted_steps(folder: Path) -> int:
    try:
        return int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["env_steps"])
    except (OSError, ValueError, KeyError):
        return 0


def run_plan(
    plan: Sequence[RunSpec], results: Path, engine: Callable[[], Engine], command: str
) -> list[tuple[RunSpec, str]]:
    """Carry out the runs of a plan that have not finished.

    :param plan: the runs.
    :param results: results folder.
    :param engine: makes the place where they run, after the folder has been checked.
    :param command: the command line, which is recorded with every run.
    :return: the runs that have not finished, and how they ended: failed, killed, in use by another command.
    :raises ValueError: if the folder holds other runs or another format version; see
        :func:`sb3_pwm.benchmark.results.unfinished`.
    """
    waiting = unfinished(plan, results)
    board = Runs(plan, results, waiting)
    print(f"{len(plan)} runs, {len(plan) - len(waiting)} of them finished before", flush=True)
    if not waiting:
        return []
    jobs = [make_job(spec, results, command) for spec in waiting]
    failed = run_jobs(jobs, engine(), board, _how_it_ended)
    return [(board.folders[job["folder"]], state) for job, state in failed]


def _how_it_ended(job: Job, code: int) -> str:
    if code == IN_USE_CODE:
        return IN_USE
    path = Path(job["folder"])
    state = read_run(path).state if (path / "run.json").exists() else None
    return state if state in (FINISHED, FAILED) else f"{KILLED} ({code})"
