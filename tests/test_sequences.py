from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_pwm.replay.windows import draw_windows, newest_rows, windows_at


class Ring(NamedTuple):
    """A ring buffer, and the whole history that was written into it."""

    history: np.ndarray  # (n_steps, n_columns), true where an episode ended
    dones: np.ndarray  # (capacity, n_columns)
    times: np.ndarray  # (capacity,) the step that each row holds, -1 for none
    oldest: int
    size: int


def fill(history: np.ndarray, capacity: int) -> Ring:
    dones = np.zeros((capacity, history.shape[1]), dtype=np.float32)
    times = np.full(capacity, -1)
    for time, ends in enumerate(history):
        dones[time % capacity], times[time % capacity] = ends, time
    full = len(history) >= capacity
    return Ring(history, dones, times, len(history) % capacity if full else 0, min(len(history), capacity))


@st.composite
def rings(draw: st.DrawFn) -> Ring:
    n_columns = draw(st.integers(1, 3))
    ends = st.lists(st.booleans(), min_size=n_columns, max_size=n_columns)
    return fill(np.array(draw(st.lists(ends, min_size=1, max_size=25))), draw(st.integers(1, 12)))


def every_start(ring: Ring, length: int) -> tuple[Any, Any, Any]:
    ages, columns = (grid.flatten() for grid in np.mgrid[: ring.size, : ring.dones.shape[1]])
    return ages, columns, windows_at(ages, columns, ring.dones, ring.oldest, ring.size, length)


def walk(history: np.ndarray, time: int, column: int, length: int) -> list[int]:
    """Times of a window's valid steps, found by walking through the history one step at a time."""
    times: list[int] = []
    while time < len(history) and len(times) < length:
        times.append(time)
        if history[time, column]:
            break
        time += 1
    return times


def shown_terminations(dones: np.ndarray, windows: Any) -> float:
    mask = windows.mask
    return dones[windows.rows, windows.columns][mask].mean()


def test_windows_by_hand() -> None:
    # rows 0..4 hold the steps 5, 6, 2, 3, 4; step 3 ended an episode
    dones = np.array([[0], [0], [0], [1], [0]], dtype=np.float32)
    windows = windows_at(np.array([0, 2, 4]), np.zeros(3, dtype=np.int64), dones, oldest=2, size=5, length=3)
    # starts: step 2 (row 2), step 4 (row 4), step 6 (row 1)
    assert windows.rows.T[windows.mask.T].tolist() == [2, 3, 4, 0, 1, 1]
    assert windows.mask.T.tolist() == [[True, True, False], [True, True, True], [True, False, False]]


@settings(max_examples=400)
@given(rings(), st.integers(1, 8))
def test_every_window_is_what_a_walk_through_the_history_finds(ring: Ring, length: int) -> None:
    ages, columns, windows = every_start(ring, length)
    assert windows.rows.shape == windows.mask.shape == (length, len(ages))
    assert (windows.columns == columns).all()
    assert ((windows.rows >= 0) & (windows.rows < len(ring.dones))).all()
    assert windows.mask[0].all()
    first_time = len(ring.history) - ring.size
    for b, (age, column) in enumerate(zip(ages, columns, strict=True)):
        expected = walk(ring.history, first_time + age, column, length)
        assert windows.mask[:, b].tolist() == [k < len(expected) for k in range(length)]
        assert ring.times[windows.rows[:, b]][windows.mask[:, b]].tolist() == expected


@given(rings(), st.integers(1, 8), st.integers(1, 64))
def test_drawn_windows_hold_consecutive_stored_steps_of_one_episode(ring: Ring, length: int, batch_size: int) -> None:
    windows = draw_windows(ring.dones, ring.oldest, ring.size, batch_size, length)
    assert windows.rows.shape == (length, batch_size)
    assert windows.mask[0].all()
    times = ring.times[windows.rows]
    assert (times[windows.mask] >= 0).all()
    continued = windows.mask[1:]
    assert windows.mask[:-1][continued].all()
    assert (np.diff(times, axis=0)[continued] == 1).all()
    assert not ring.dones[windows.rows[:-1], windows.columns][continued].any()


@pytest.mark.parametrize(("n_steps", "capacity"), [(5, 5), (13, 5), (5, 50)], ids=["full", "wrapped", "part filled"])
def test_starts_are_uniform_over_all_stored_steps(n_steps: int, capacity: int) -> None:
    ring = fill(np.zeros((n_steps, 3)), capacity)
    n_draws, n_places = 30_000, ring.size * 3
    windows = draw_windows(ring.dones, ring.oldest, ring.size, n_draws, length=2)
    counts = np.zeros(ring.dones.shape)
    np.add.at(counts, (windows.rows[0], windows.columns), 1)
    assert not counts[ring.times < 0].any()
    # five standard deviations of a count
    tolerance = 5 * (n_draws / n_places) ** 0.5
    np.testing.assert_allclose(counts[ring.times >= 0], n_draws / n_places, atol=tolerance)


def test_draws_follow_numpys_global_seed() -> None:
    dones = np.zeros((50, 2), dtype=np.float32)

    def rows(seed: int) -> np.ndarray:
        np.random.seed(seed)
        return draw_windows(dones, 0, 50, 20, 3).rows

    assert (rows(1) == rows(1)).all()
    assert (rows(1) != rows(2)).any()


def test_terminations_are_shown_as_often_as_they_happen() -> None:
    length = 16
    ring = fill(np.random.random((6_000, 3)) < 0.05, capacity=5_000)
    frequency = ring.dones.mean()
    _, _, windows = every_start(ring, length)
    assert shown_terminations(ring.dones, windows) == pytest.approx(frequency, rel=0.05)
    drawn = draw_windows(ring.dones, ring.oldest, ring.size, 20_000, length)
    assert shown_terminations(ring.dones, drawn) == pytest.approx(frequency, rel=0.05)
    # what masks are for: whole windows alone would hide most of them
    whole = windows.mask.all(0)
    strict = ring.dones[windows.rows[:, whole], windows.columns[whole]].mean()
    assert strict < frequency / 8


@given(data=st.data(), capacity=st.integers(1, 12), at_once=st.integers(1, 5))
def test_newest_rows_are_those_in_front_of_the_end(data: st.DataObject, capacity: int, at_once: int) -> None:
    count, end = data.draw(st.integers(0, capacity)), data.draw(st.integers(0, capacity - 1))
    pieces = [list(range(capacity))[rows] for rows in newest_rows(count, end, capacity, at_once)]
    assert [row for piece in pieces for row in piece] == [(end - age) % capacity for age in range(count, 0, -1)]
    assert all(1 <= len(piece) <= at_once for piece in pieces)
