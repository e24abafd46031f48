"""What learn(progress_bar=True) shows."""

import io
import sys
import threading
from typing import Any

import pytest
from helpers import make, make_by_fours, same
from rich.console import Console
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback

from sb3_pwm.compute.live import LOGGED, LiveProgress


def shown_by(is_terminal: bool, **kwargs: Any) -> tuple[str, LiveProgress]:
    """Train 40 steps, of which 20 are random, and return what was printed."""
    file = io.StringIO()
    view = LiveProgress(Console(file=file, force_terminal=is_terminal, width=80, color_system=None))
    make_by_fours(pretrain_steps=30, **kwargs).learn(40, callback=view, log_interval=1)
    return file.getvalue(), view


def alive_since(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return threads that were not there before, after those that were told to end have ended."""
    threads = set(threading.enumerate()) - before
    for thread in threads:
        thread.join(10)
    return [thread for thread in threads if thread.is_alive()]


def test_lines_where_there_is_no_terminal() -> None:
    text, view = shown_by(is_terminal=False)
    header, *lines = text.splitlines()
    assert header.split() == [
        "steps",
        "phase",
        "steps/s",
        "time",
        "left",
        "return",
        "calibration",
        "critic",
        "gap",
        "model",
        "loss",
    ]
    assert [int(line.split()[0]) for line in lines] == [*range(2, 22, 2), 20, *range(22, 42, 2)]
    phases = [line[14:26].strip() for line in lines]
    assert phases == [*["collecting"] * 10, "world model", *["learning"] * 10]
    assert lines[-1].split()[0] == "40"
    assert float(lines[-1].split()[4]) == pytest.approx(view.figures()["return"], rel=1e-3)
    assert len(lines) == 20 + 1  # every second step, and the world model's phase


def test_figures_are_the_returns_and_what_was_logged_last() -> None:
    file = io.StringIO()
    view = LiveProgress(Console(file=file, width=200))
    model = make(pretrain_steps=5)
    seen: dict[str, float] = {}

    def remember(*_: Any) -> bool:
        seen.update(view.figures())
        return True

    model.learn(60, callback=[view, ConvertCallback(remember)], log_interval=1)
    assert seen.keys() == {"return", *LOGGED.values()}
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    assert view.figures()["return"] == pytest.approx(sum(returns) / len(returns))


def test_a_bar_in_a_terminal() -> None:
    text, _ = shown_by(is_terminal=True)
    assert "40 / 40" in text
    assert "steps/s" in text
    assert "return" in text
    assert "learning" in text


def test_it_changes_nothing_and_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    view = LiveProgress(Console(file=io.StringIO(), force_terminal=True))
    watched = make().learn(40, callback=CallbackList([view]))
    assert same(watched.policy.state_dict(), make().learn(40).policy.state_dict())
    assert view.log not in watched.logger.output_formats
    assert alive_since(before) == []


def test_nothing_draws_after_ctrl_c() -> None:
    def interrupt(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= 8:
            raise KeyboardInterrupt
        return True

    before = set(threading.enumerate())
    view = LiveProgress(Console(file=io.StringIO(), force_terminal=True))
    model = make()
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, callback=[view, ConvertCallback(interrupt)])
    assert alive_since(before) == []
    assert view.log not in model.logger.output_formats


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(
        ImportError, match=r"progress_bar=True needs rich; in a checkout: pip install -c constraints.txt '\.\[extra\]'"
    ):
        make().learn(40, progress_bar=True)
