"""Carry out jobs, and show how far they are: a table in a terminal, lines elsewhere."""

import datetime
import json
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_pwm.benchmark.engines import POLL_SECONDS, Engine, Job
from sb3_pwm.benchmark.results import FAILED, FINISHED, IN_USE, IN_USE_CODE, RUNNING

if TYPE_CHECKING:
    from rich.table import Table

WAITING, KILLED = "waiting", "killed"
PROGRESS = "progress.json"  # what a unit's process notes in the unit's folder
ORDER = (RUNNING, FAILED, WAITING, FINISHED)  # where there are more jobs than lines in the terminal
FRAME_LINES = 6  # of a table, besides its rows
Ended = Callable[[Job, int], str]


class Board(ABC):
    """The state of every job, by its folder.

    :param states: the states.
    """

    header: Sequence[str]
    """Names of the columns."""
    longest: Sequence[str]
    """Texts of the length that the columns are to have at least where lines are printed."""
    n_left: int
    """Number of columns that say which job it is, and the state."""

    def __init__(self, states: Mapping[str, str]) -> None:
        self.states = dict(states)

    @abstractmethod
    def row(self, folder: str) -> list[str]:
        """Return the row of a job as it is now."""

    @abstractmethod
    def passed(self, folder: str) -> list[list[str]]:
        """Return rows of a job as it was before, the oldest first, of which each is to be printed as a line."""

    def rows(self) -> list[list[str]]:
        """Return the row of each job, see :attr:`header`."""
        return [self.row(folder) for folder in self.states]


class Units(Board):
    """Jobs that note their progress (:class:`sb3_pwm.benchmark.progress.Note`); a line when another tenth is done.

    :param columns: names of the columns that say which job it is.
    :param names: what these columns have, by the jobs' folders.
    :param waiting: folders of those that have not finished.
    """

    def __init__(self, columns: Sequence[str], names: Mapping[str, Sequence[str]], waiting: Collection[str]) -> None:
        super().__init__({folder: WAITING if folder in waiting else FINISHED for folder in names})
        self.names = names
        self.n_left = len(columns) + 1
        self.header = (*columns, "state", "done", "time left", "found")
        self.longest = (*[""] * len(columns), FINISHED, *(" " * width for width in (32, 9, 22)))
        self.tenths = dict.fromkeys(names, 0)
        self.lines: dict[str, list[list[str]]] = {folder: [] for folder in names}

    def row(self, folder: str) -> list[str]:
        """Return the row of a job as it is now."""
        state = self.states[folder]
        noted = {} if state == WAITING else read_progress(Path(folder))
        done = left = ""
        if noted:
            share = 100 * noted["done"] // max(1, noted["total"])  # of a policy with no update
            done = f"{noted['done']:,} / {noted['total']:,} {noted['what']} ({share} %)"
            if state == RUNNING and noted["seconds_left"] is not None:
                left = str(datetime.timedelta(seconds=round(noted["seconds_left"])))
        found = ", ".join(f"{name} {value:.4g}" for name, value in noted.get("figures", {}).items())
        return [*self.names[folder], state, done, left, found]

    def passed(self, folder: str) -> list[list[str]]:
        """Return the rows of a job when another tenth of it was done."""
        noted = read_progress(Path(folder)) if self.states[folder] == RUNNING else {}
        tenths = 10 * noted["done"] // max(1, noted["total"]) if noted else 0
        if tenths > self.tenths[folder]:
            self.tenths[folder] = tenths
            self.lines[folder].append(self.row(folder))
        return self.lines[folder]


def read_progress(folder: Path) -> dict[str, Any]:
    """Return what a unit has noted; nothing if it has not."""
    try:
        return dict(json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


class Lines:
    """Where there is no terminal: a header, then a line for whatever is passed and each start and end of a job."""

    def __init__(self, board: Board) -> None:
        self.board = board
        columns = zip(board.header, board.longest, *board.rows(), strict=True)
        self.widths = [max(map(len, column)) for column in columns]
        self.printed = {folder: len(board.passed(folder)) for folder in board.states}
        self._print(board.header)

    def show(self, folder: str | None) -> None:
        """Print what has been passed since, then the state of a job if it has changed."""
        for running, state in self.board.states.items():
            if state == RUNNING or running == folder:
                rows = self.board.passed(running)
                for row in rows[self.printed[running] :]:
                    self._print(row)
                self.printed[running] = len(rows)
        if folder is not None:
            self._print(self.board.row(folder))

    def _print(self, texts: Sequence[str]) -> None:
        n_left = self.board.n_left
        left = [f"{text:<{width}}" for text, width in zip(texts[:n_left], self.widths, strict=False)]
        right = [f"{text:>{width}}" for text, width in zip(texts[n_left:], self.widths[n_left:], strict=True)]
        print("  ".join(left + right).rstrip(), flush=True)


def how_it_ended(_: Job, code: int) -> str:
    """Return the state of a job whose process has ended with an exit code."""
    if code == IN_USE_CODE:
        return IN_USE
    return FINISHED if code == 0 else FAILED if code > 0 else f"{KILLED} ({code})"


def why(job: Job, state: str) -> str:
    """Say in one line how a job that has not finished ended: its state and the last line of its log."""
    log = Path(job["folder"]) / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{state}; see {log}" + (f", which ends with: {last}" if last else "")


def run_jobs(jobs: Sequence[Job], place: Engine, board: Board, ended: Ended = how_it_ended) -> list[tuple[Job, str]]:
    """Carry out jobs, and show how far they are.

    :param jobs: the jobs.
    :param place: where they run.
    :param board: their states, which are kept up to date.
    :param ended: gives the state of a job that has ended with an exit code.
    :return: the jobs that have not finished, and their states.
    """
    waiting, left = list(jobs), len(jobs)
    failed: list[tuple[Job, str]] = []
    show, close = _display(board)
    try:
        while left:
            while waiting and place.has_room():
                job = waiting.pop(0)
                place.start(job)
                board.states[job["folder"]] = RUNNING
                show(job["folder"])
            for job, code in place.poll():
                left -= 1
                board.states[job["folder"]] = state = ended(job, code)
                if state != FINISHED:
                    failed.append((job, state))
                show(job["folder"])
            show(None)
            time.sleep(POLL_SECONDS)
    finally:
        place.stop()
        close()
    return failed


def _display(board: Board) -> tuple[Callable[[str | None], None], Callable[[], None]]:
    """Return what shows news of a job (None: whatever is new), and what ends the display."""
    try:
        from rich.live import Live
    except ImportError:
        return Lines(board).show, lambda: None
    if not sys.stdout.isatty():
        return Lines(board).show, lambda: None
    live = Live(refresh_per_second=2)
    live.update(table_of(board, live.console.height))
    live.start()
    return lambda _: live.update(table_of(board, live.console.height)), live.stop


def table_of(board: Board, height: int) -> "Table":
    """Return the jobs as a table of so many lines at most, those that are at work first if not all have room."""
    from rich.table import Table

    rows, state = board.rows(), board.n_left - 1
    counts = Counter(row[state] for row in rows)
    if len(rows) > height - FRAME_LINES:
        ranks = {name: rank for rank, name in enumerate(ORDER)}
        rows.sort(key=lambda row: ranks.get(row[state], ranks[FAILED]))
        rows = rows[: max(1, height - FRAME_LINES)]
    table = Table(caption=", ".join(f"{count} {name}" for name, count in counts.items()))
    colors: dict[str, Any] = {RUNNING: "cyan", FINISHED: "green", WAITING: "dim"}
    for number, name in enumerate(board.header):
        table.add_column(name, justify="right" if number > state else "left")
    for row in rows:
        table.add_row(*row, style=colors.get(row[state], "red"))
    return table
