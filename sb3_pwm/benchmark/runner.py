"""Carry out the runs of a plan, and show how far they are."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_pwm.benchmark.engines import POLL_SECONDS, Engine, Job, make_job
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

if TYPE_CHECKING:
    from rich.table import Table

WAITING, KILLED = "waiting", "killed"
HEADER = ("environment", "algorithm", "seed", "state", "steps", "return", "CPU s")


class Board:
    """The state of every run of a plan, read from the results folder, which any engine writes.

    :param plan: the runs.
    :param results: results folder.
    :param waiting: those of them that have not finished.
    """

    def __init__(self, plan: Sequence[RunSpec], results: Path, waiting: Sequence[RunSpec]) -> None:
        self.results = results
        self.folders = {str(spec.folder(results.resolve())): spec for spec in plan}
        self.states = {folder: WAITING if spec in waiting else FINISHED for folder, spec in self.folders.items()}

    def rows(self) -> list[list[str]]:
        """Return the row of each run, see :data:`HEADER`."""
        return [self.row(folder) for folder in self.folders]

    def curve(self, folder: str) -> list[CurveRow]:
        """Return the evaluations of a run."""
        return [] if self.states[folder] == WAITING else read_curve(Path(folder))

    def row(self, folder: str) -> list[str]:
        """Return the row of a run as it is now."""
        state, curve = self.states[folder], self.curve(folder)
        steps = curve[-1].env_steps if curve else 0
        if state == RUNNING:
            steps = max(steps, _noted_steps(Path(folder)))
        return self._texts(folder, state, steps, curve[-1] if curve else None)

    def evaluation(self, folder: str, evaluation: CurveRow) -> list[str]:
        """Return the row of a run as it was at an evaluation."""
        return self._texts(folder, RUNNING, evaluation.env_steps, evaluation)

    def _texts(self, folder: str, state: str, steps: int, last: CurveRow | None) -> list[str]:
        spec = self.folders[folder]
        done = f"{steps:,} / {spec.steps:,} ({100 * steps // spec.steps} %)"
        numbers = [f"{last.return_mean:,.1f}", f"{last.cpu_seconds:,.0f}"] if last else ["", ""]
        return [spec.env, spec.name, str(spec.seed), state, done, *numbers]


class Lines:
    """Where there is no terminal: a header, then a line for each evaluation and each start and end of a run."""

    def __init__(self, board: Board) -> None:
        self.board = board
        specs = list(board.folders.values())
        longest = ["", "", "", FINISHED, *(" " * width for width in (22, 9, 7))]
        columns = zip(HEADER, longest, *([spec.env, spec.name, *5 * [""]] for spec in specs), strict=True)
        self.widths = [max(map(len, column)) for column in columns]
        self.printed = {folder: len(read_curve(Path(folder))) for folder in board.folders}
        self._print(HEADER)

    def show(self, folder: str | None) -> None:
        """Print the evaluations that are new, then the state of a run if it has changed."""
        for running, state in self.board.states.items():
            if state == RUNNING or running == folder:
                curve = self.board.curve(running)
                for evaluation in curve[self.printed[running] :]:
                    self._print(self.board.evaluation(running, evaluation))
                self.printed[running] = len(curve)
        if folder is not None:
            self._print(self.board.row(folder))

    def _print(self, texts: Sequence[str]) -> None:
        left = [f"{text:<{width}}" for text, width in zip(texts[:4], self.widths, strict=False)]
        right = [f"{text:>{width}}" for text, width in zip(texts[4:], self.widths[4:], strict=True)]
        print("  ".join(left + right).rstrip(), flush=True)


def _noted_steps(folder: Path) -> int:
    try:
        return int(json.loads((folder / "progress.json").read_text(encoding="utf-8"))["env_steps"])
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
    board = Board(plan, results, waiting)
    print(f"{len(plan)} runs, {len(plan) - len(waiting)} of them finished before", flush=True)
    if not waiting:
        return []
    place = engine()
    show, close = _display(board)
    jobs = [make_job(spec, results, command) for spec in waiting]
    failed: list[tuple[RunSpec, str]] = []
    left = len(jobs)
    try:
        while left:
            while jobs and place.has_room():
                job = jobs.pop(0)
                place.start(job)
                board.states[job["folder"]] = RUNNING
                show(job["folder"])
            for job, code in place.poll():
                left -= 1
                board.states[job["folder"]] = state = _how_it_ended(job, code)
                if state != FINISHED:
                    failed.append((board.folders[job["folder"]], state))
                show(job["folder"])
            show(None)
            time.sleep(POLL_SECONDS)
    finally:
        place.stop()
        close()
    return failed


def _how_it_ended(job: Job, code: int) -> str:
    if code == IN_USE_CODE:
        return IN_USE
    path = Path(job["folder"])
    state = read_run(path).state if (path / "run.json").exists() else None
    return state if state in (FINISHED, FAILED) else f"{KILLED} ({code})"


def _display(board: Board) -> tuple[Callable[[str | None], None], Callable[[], None]]:
    """Return what shows news of a run (None: whatever is new), and what ends the display."""
    try:
        from rich.live import Live
    except ImportError:
        return Lines(board).show, lambda: None
    if not sys.stdout.isatty():
        return Lines(board).show, lambda: None
    live = Live(_table(board), refresh_per_second=2)
    live.start()
    return lambda folder: live.update(_table(board)), live.stop


def _table(board: Board) -> "Table":
    from rich.table import Table

    table = Table()
    colors: dict[str, Any] = {RUNNING: "cyan", FINISHED: "green", WAITING: "dim"}
    for name in HEADER:
        table.add_column(name, justify="right" if name in HEADER[4:] else "left")
    for row in board.rows():
        table.add_row(*row, style=colors.get(row[3], "red"))
    return table
