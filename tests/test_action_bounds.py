"""Action spaces from whose bounds actions cannot be rescaled are refused at every door."""

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from helpers import BOX, SpaceEnv, make, space_envs
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pwm import PWM
from sb3_pwm.datasets import from_arrays, from_replay_buffer
from sb3_pwm.multitask.envs import PaddedTaskEnv, single_task_env
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.multitask.tasks import Task, TaskSet

MOST = float(np.finfo(np.float32).max)
FLAT = {"observations": np.zeros((3, 3)), "actions": np.full((3, 2), 0.5), "rewards": np.zeros(3)}
FLAT |= {"terminals": np.zeros(3), "timeouts": np.zeros(3)}


def box(low: Any, high: Any, dtype: Any = np.float32) -> spaces.Box:
    """A Box whose dimension 0 is [-1, 1] and whose dimension 1 is the given one."""
    return spaces.Box(np.array([-1, low], dtype), np.array([1, high], dtype), dtype=dtype)


def crossed() -> spaces.Box:
    """Gymnasium itself makes no such Box, but environments may write into ``low`` and ``high``."""
    space = box(0, 1)
    space.low[1] = 2
    return space


BAD = {
    "equal": (box(0.5, 0.5), r"dimension 1 goes from 0\.5 to 0\.5: there is nothing to choose; .*drop the dimension"),
    "crossed": (crossed(), r"dimension 1 goes from 2\.0 to 1\.0: .*low < high"),
    "no lower bound": (box(-np.inf, 1), r"dimension 1 goes from -inf to 1\.0: .*finite bounds"),
    "no bounds": (box(-np.inf, np.inf), r"dimension 1 goes from -inf to inf: .*finite bounds"),
    "too wide": (box(-MOST, MOST), r"dimension 1 goes from -3\.4\d*e\+38 to 3\.4\d*e\+38: float32 .*narrower"),
    "too wide for float16": (box(-6e4, 6e4, np.float16), r"dimension 1 goes from -6\S+ to 6\S+: float16"),
    "too wide for float64": (box(-1.5e308, 1.5e308, np.float64), r"dimension 1 .*: float64"),
}
every_bad_space = pytest.mark.parametrize(("space", "message"), BAD.values(), ids=BAD)


@pytest.fixture(autouse=True)
def _quiet_boxes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(lowered by casting|precision)")
        yield


@every_bad_space
@pytest.mark.parametrize("n_envs", [1, 2])
def test_constructor(space: spaces.Space[Any], message: str, n_envs: int) -> None:
    with pytest.raises(ValueError, match=f"action_space: {message}"):
        make(space_envs(n_envs, action_space=space))


@every_bad_space
def test_data(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"action_space: {message}"):
        from_arrays(FLAT, BOX, space)
    buffer = ReplayBuffer(4, BOX, space, device="cpu")
    buffer.add(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(1), np.zeros(1), [{}])
    for door in (from_replay_buffer, PWM.from_dataset):
        with pytest.raises(ValueError, match=f"action_space: {message}"):
            door(buffer)


@every_bad_space
def test_tasks(space: spaces.Space[Any], message: str) -> None:
    env = partial(SpaceEnv, action_space=space)
    message = f"task 'odd': action_space: {message}"
    declared = TaskSet([Task("odd", env, 3, 2)])
    for door in (
        lambda: TaskSet.from_envs({"odd": env}),
        lambda: single_task_env(declared, "odd"),
        lambda: PaddedTaskEnv(env(), "odd", 0, 1, 3, 2),
    ):
        with pytest.raises(ValueError, match=message):
            door()


@every_bad_space
def test_other_environments_of_a_model(space: spaces.Space[Any], message: str, tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model")
    env = space_envs(action_space=space)
    for door in (model.set_env, partial(PWM.load, tmp_path / "model"), model.model_gap):
        with pytest.raises(ValueError, match=f"action_space: {message}"):
            door(env)
    assert model.env is not env


@every_bad_space
def test_extraction(space: spaces.Space[Any], message: str) -> None:
    task_set = TaskSet.from_envs({"one": SpaceEnv})
    model = make(single_task_env(task_set, "one"), MultiTaskPolicy, policy_kwargs={"task_set": task_set}).learn(20)
    with pytest.raises(ValueError, match=f"action_space: {message}"):
        model.extract("one", 0, env=SpaceEnv(action_space=space))


def test_a_space_with_several_axes() -> None:
    space = spaces.Box(-1, 1, (2, 3), np.float32)
    space.high[1, 2] = -1
    with pytest.raises(ValueError, match=r"dimension \(1, 2\) goes from -1\.0 to -1\.0"):
        make(space_envs(action_space=space))


@pytest.mark.parametrize(
    "space",
    [
        box(-1e30, 1e30),
        box(0, 1e-40),
        box(1e6, 1e6 + 1),
        box(-1e30, 1e30, np.float64),
        box(-3e4, 3e4, np.float16),
    ],
)
def test_bounds_that_are_only_unusual(space: spaces.Space[Any]) -> None:
    model = make(space_envs(action_space=space)).learn(40)
    stored = model.replay_buffer.actions[:40]
    assert stored.min() >= -1
    assert stored.max() <= 1
    assert len(np.unique(stored[:, 0, 1])) > 10
    assert np.isfinite(evaluate_policy(model, space_envs(action_space=space), n_eval_episodes=1)[0])
