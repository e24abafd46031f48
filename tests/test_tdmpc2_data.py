from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_toys import damage_file
from gymnasium import spaces
from tensordict import TensorDict

from sb3_pwm.datasets import from_tdmpc2

N_EPISODES, N_STEPS = 5, 6


def tdmpc2_table(tasks: Sequence[int] = (0, 1, 0, 1, 1)) -> TensorDict:
    """Row t: observation (episode, t, ...) and the action and reward of the step from t - 1 to t; row 0 has none."""
    time = torch.arange(N_STEPS + 1.0).repeat(N_EPISODES, 1)
    number = torch.arange(float(N_EPISODES))[:, None].expand_as(time)
    obs = torch.stack([number, time, 0 * time, 0 * time], -1)
    action = torch.stack([time / 10, -time / 10, 0 * time], -1)
    reward = time.clone()
    action[:, 0], reward[:, 0] = np.nan, np.nan
    task = torch.tensor(tasks, dtype=torch.int32)[:, None].repeat(1, N_STEPS + 1)
    return TensorDict(
        {"obs": obs, "action": action, "reward": reward, "task": task}, batch_size=[N_EPISODES, N_STEPS + 1]
    )


def test_tdmpc2_rows_are_shifted_into_place(tmp_path: Path) -> None:
    torch.save(tdmpc2_table(), tmp_path / "chunk_0.pt")
    torch.save(tdmpc2_table((1, 1, 1, 1, 0)), tmp_path / "chunk_1.pt")
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    buffer = from_tdmpc2(tmp_path, 0, space, spaces.Box(-1, 1, (2,), np.float32))
    assert buffer.size() == 3 * N_STEPS
    steps = np.tile(np.arange(N_STEPS), 3)
    numbers = np.repeat([0, 2, 4], N_STEPS)
    np.testing.assert_array_equal(buffer.observations[:, 0], np.stack([numbers, steps], -1))
    np.testing.assert_array_equal(buffer.next_observations[:, 0], np.stack([numbers, steps + 1], -1))
    np.testing.assert_array_equal(buffer.rewards[:, 0], steps + 1)
    np.testing.assert_allclose(buffer.actions[:, 0], np.stack([(steps + 1) / 10, -(steps + 1) / 10], -1), rtol=1e-6)
    assert np.flatnonzero(buffer.dones).tolist() == np.flatnonzero(buffer.timeouts).tolist() == [5, 11, 17]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type(tmp_path: Path, dtype: torch.dtype) -> None:
    table = tdmpc2_table((0,) * N_EPISODES)
    for name in ("obs", "action", "reward"):
        table[name] = table[name].to(dtype).requires_grad_()
    torch.save(table, tmp_path / "data.pt")
    buffer = from_tdmpc2(tmp_path / "data.pt")
    np.testing.assert_array_equal(buffer.rewards[:, 0], np.tile(np.arange(1, N_STEPS + 1), N_EPISODES))


def test_tdmpc2_files_of_one_task(tmp_path: Path) -> None:
    table = tdmpc2_table()
    del table["task"]
    torch.save(table, tmp_path / "data.pt")
    buffer = from_tdmpc2([tmp_path / "data.pt"])
    assert buffer.size() == N_EPISODES * N_STEPS
    assert (buffer.observation_space.shape, buffer.action_space.shape) == ((4,), (3,))


class Foreign:
    pass


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        (tdmpc2_table, None, r"data\.pt holds the tasks \[0, 1\]: name one"),
        (tdmpc2_table, 7, r"no episode of task 7; tasks found: \[0, 1\]"),
        (Foreign, None, "cannot read .*data.pt"),
        (lambda: {"obs": torch.zeros(2)}, None, "has no action, reward"),
        (lambda: [1], None, "has no obs, action, reward"),
        (lambda: tdmpc2_table()[:, :1], None, "expected .*steps"),
        (lambda: {n: torch.zeros(2, 3) for n in ("obs", "action", "reward")}, None, "expected 3 dimensions"),
        (lambda: tdmpc2_table().apply(lambda x: x + torch.nan if x.is_floating_point() else x), 0, "not finite"),
    ],
)
def test_bad_tdmpc2_files(tmp_path: Path, content: Any, task: int | None, message: str) -> None:
    torch.save(content(), tmp_path / "data.pt")
    with pytest.raises(ValueError, match=message):
        from_tdmpc2(tmp_path / "data.pt", task)


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_tdmpc2_file_is_refused_or_read_whole(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "data.pt"
    torch.save(tdmpc2_table(), path)
    damage_file(path, seed)
    try:
        buffer = from_tdmpc2(path, 0)
    except ValueError as error:
        assert "data.pt" in str(error)  # noqa: PT017
    else:
        assert np.isfinite(buffer.rewards).all()


def test_no_tdmpc2_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.pt file"):
        from_tdmpc2(tmp_path)


def test_files_of_different_tasks_are_not_mixed(tmp_path: Path) -> None:
    torch.save(tdmpc2_table((1, 1, 1, 1, 1)), tmp_path / "a.pt")
    torch.save(tdmpc2_table((3, 3, 3, 3, 3)), tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt holds the tasks \[3\], the files before it \[1\]: name one"):
        from_tdmpc2(tmp_path)
    assert from_tdmpc2(tmp_path, 3).size() == N_EPISODES * N_STEPS
    assert from_tdmpc2(tmp_path / "b.pt").size() == N_EPISODES * N_STEPS


def test_the_first_row_of_an_episode_holds_no_step(tmp_path: Path) -> None:
    """A reward of 0 is as good as NaN there; another one would be shifted by one. The action may be anything."""
    table = tdmpc2_table()
    table["reward"][:, 0], table["action"][1:, 0] = 0, 7
    torch.save(table, tmp_path / "data.pt")
    data = from_tdmpc2(tmp_path, 0)
    assert data.rewards[:, 0].tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert np.abs(data.actions).max() <= 1
    table["reward"][2, 0] = 0.5
    torch.save(table, tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"data\.pt, episode 2: reward is 0\.5 in row 0.*led to"):
        from_tdmpc2(tmp_path, 0)


@pytest.mark.parametrize("field", ["obs", "action"])
def test_files_of_different_widths_are_not_cut(tmp_path: Path, field: str) -> None:
    wide = tdmpc2_table((1, 1, 1, 1, 1))
    narrow = wide.clone()
    narrow[field] = narrow[field][..., :2]
    torch.save(narrow, tmp_path / "a.pt")
    torch.save(wide, tmp_path / "b.pt")
    space = {"obs": "observation_space", "action": "action_space"}[field]
    with pytest.raises(ValueError, match=rf"b\.pt: {field} has {wide[field].shape[-1]} .*a\.pt 2.*{space}"):
        from_tdmpc2(tmp_path)
    widths: dict[str, Any] = {space: spaces.Box(-1, 1, (2,))}
    buffer = from_tdmpc2(tmp_path, **widths)  # says what is padding
    assert buffer.size() == 2 * N_EPISODES * N_STEPS
    torch.save(tdmpc2_table((0, 0, 0, 0, 0)), tmp_path / "b.pt")
    buffer = from_tdmpc2(tmp_path, 1)  # whose episodes are all in the other file
    assert getattr(buffer, space).shape == (2,)


def test_an_error_names_the_file_and_the_episode_in_it(tmp_path: Path) -> None:
    torch.save(tdmpc2_table(), tmp_path / "a.pt")
    bad = tdmpc2_table()
    bad["reward"][3, 2] = torch.nan
    torch.save(bad, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt, episode 3: rewards are not finite in row 1: nan"):
        from_tdmpc2(tmp_path, 1)


def with_terminated(dtype: Any = torch.float32) -> TensorDict:
    """The last step of episode 0 terminates."""
    terminated = torch.zeros(N_EPISODES, N_STEPS + 1)
    terminated[0, N_STEPS] = 1
    if dtype.is_floating_point:
        terminated[:, 0] = torch.nan  # as TD-MPC2 writes it
    table = tdmpc2_table()
    table["terminated"] = terminated.to(dtype)
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_terminations(tmp_path: Path, dtype: Any) -> None:
    torch.save(with_terminated(dtype=dtype), tmp_path / "data.pt")
    buffer = from_tdmpc2(tmp_path, 0)  # episodes 0, which terminates, and 2, which does not
    assert np.flatnonzero(buffer.dones).tolist() == [5, 11]
    assert np.flatnonzero(buffer.timeouts).tolist() == [11]


@pytest.mark.parametrize(("row", "value"), [(3, 1.0), (6, torch.nan), (4, 0.5), (0, 1.0)])
def test_bad_terminations(tmp_path: Path, row: int, value: float) -> None:
    table = with_terminated()
    table["terminated"][2, row] = value
    torch.save(table, tmp_path / "data.pt")
    with pytest.raises(ValueError, match=rf"data\.pt, episode 2: terminated is {value} in row {row}; allowed"):
        from_tdmpc2(tmp_path, 0)


def test_fields_of_other_shapes(tmp_path: Path) -> None:
    table = dict(with_terminated().items())
    for field, values, message in (
        ("task", table["task"][:, 0], r"expected .*'task': \(5,\)"),
        ("terminated", table["terminated"][:, 0], r"expected .*'terminated': \(5,\)"),
        ("terminated", table["obs"], r"terminated has the shape \(5, 7, 4\), expected 2 dimensions"),
    ):
        torch.save(table | {field: values}, tmp_path / "data.pt")
        with pytest.raises(ValueError, match=rf"data\.pt: {message}"):
            from_tdmpc2(tmp_path, 0)
