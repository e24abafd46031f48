"""What the commands that carry out jobs show of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sb3_pwm.benchmark.jobs import Lines, Units, how_it_ended, table_of
from sb3_pwm.benchmark.progress import Note
from sb3_pwm.benchmark.results import FINISHED, IN_USE, IN_USE_CODE, RUNNING


def board_of(tmp_path: Path, names: Any, waiting: Any) -> Any:
    folders = {name: str(tmp_path / name) for name in names}
    for folder in folders.values():
        Path(folder).mkdir()
    return folders, Units(["task"], {folders[name]: [name] for name in names}, {folders[name] for name in waiting})


def note(folder: Any, done: int, total: int, seconds_left: Any, figures: Any) -> None:
    noted = {"done": done, "total": total, "what": "updates", "seconds_left": seconds_left, "figures": figures}
    (Path(folder) / "progress.json").write_text(json.dumps(noted))


def test_lines_of_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, board = board_of(tmp_path, ["walk", "reach"], ["walk"])
    note(folders["walk"], 9, 10, None, {})  # of before an interruption: not yet begun
    lines = Lines(board)
    Path(folders["walk"], "progress.json").unlink()
    board.states[folders["walk"]] = RUNNING
    lines.show(folders["walk"])
    for done, left in ((1_000, 3_700), (1_900, 3_600.4), (4_000, 3_500)):
        note(folders["walk"], done, 10_000, left, {"model loss": 0.51234})
        lines.show(None)
        lines.show(None)
    note(folders["walk"], 10_000, 10_000, 0.0, {"return": 812.345, "success": 1.0})
    board.states[folders["walk"]] = FINISHED
    lines.show(folders["walk"])
    assert capsys.readouterr().out.splitlines() == [
        "task   state                                 done  time left                   found",
        "walk   running",
        "walk   running      1,000 / 10,000 updates (10 %)    1:01:40       model loss 0.5123",
        "walk   running      4,000 / 10,000 updates (40 %)    0:58:20       model loss 0.5123",
        "walk   finished   10,000 / 10,000 updates (100 %)             return 812.3, success 1",
    ]


def test_a_unit_without_updates(tmp_path: Path) -> None:
    folders, board = board_of(tmp_path, ["walk"], [])
    board.states[folders["walk"]] = RUNNING
    note(folders["walk"], 0, 0, None, {})
    assert board.passed(folders["walk"]) == []
    assert board.row(folders["walk"])[2] == "0 / 0 updates (0 %)"


def test_a_table_that_is_too_long_shows_first_what_is_at_work(tmp_path: Path) -> None:
    rich = pytest.importorskip("rich.console")
    names = [f"task-{number}" for number in range(20)]
    folders, board = board_of(tmp_path, names, names[5:])
    board.states[folders["task-12"]] = RUNNING
    note(folders["task-12"], 1, 4, 90, {})
    board.states[folders["task-15"]] = "killed (-9)"
    console = rich.Console(file=io.StringIO(), width=100)
    console.print(table_of(board, 10))
    shown = console.file.getvalue()
    assert len(shown.splitlines()) <= 10
    assert [line.split()[1] for line in shown.splitlines() if " task-" in line] == [
        "task-12",
        "task-15",
        "task-5",
        "task-6",
    ]
    assert "1 / 4 updates (25 %)" in shown
    assert "0:01:30" in shown
    assert "5 finished, 13 waiting, 1 running, 1 killed (-9)" in shown
    assert table_of(board, 40).row_count == 20


def test_notes_are_rare_but_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    noted = Note(tmp_path, 10, "steps")

    def read() -> Any:
        return json.loads((tmp_path / "progress.json").read_text())

    noted(4)  # goes on from a checkpoint
    assert (read()["done"], read()["seconds_left"]) == (4, None)
    now += 1
    noted(5)
    assert read()["done"] == 4
    now += 1.5
    noted(6, {"return": 3.0})
    assert read() == {"done": 6, "total": 10, "what": "steps", "seconds_left": 5.0, "figures": {"return": 3.0}}
    noted(11)  # collecting takes some steps at a time
    assert read()["done"] == 10


@pytest.mark.parametrize(("code", "state"), [(0, FINISHED), (1, "failed"), (-9, "killed (-9)"), (IN_USE_CODE, IN_USE)])
def test_how_a_process_ended(code: int, state: str) -> None:
    assert how_it_ended({}, code) == state
