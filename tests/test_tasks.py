import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import SpaceEnv
from hypothesis import given
from hypothesis import strategies as st

from sb3_pwm.multitask.tasks import Task, TaskSet

SMALL_ENV = partial(SpaceEnv, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)))
LARGE_ENV = partial(SpaceEnv, spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,)))
DICT_SPACE = spaces.Dict({"b": spaces.Box(-1, 1, (2,)), "a": spaces.Box(-1, 1, ()), "c": spaces.Box(-1, 1, (1,))})


@pytest.fixture
def task_set() -> TaskSet:
    return TaskSet.from_envs({"small": SMALL_ENV, "large": LARGE_ENV, "swing": "Pendulum-v1"})


def test_sizes_are_read_from_the_environments(task_set: TaskSet) -> None:
    assert [(task.name, task.observation_size, task.action_size, task.episode_length) for task in task_set] == [
        ("small", 3, 1, None),
        ("large", 5, 2, None),
        ("swing", 3, 1, 200),
    ]
    assert (task_set.observation_size, task_set.action_size) == (5, 2)
    assert task_set.names == ("small", "large", "swing")
    assert [task_set.task_id(name) for name in task_set.names] == [0, 1, 2]
    assert task_set[1].name == "large"


def test_masks(task_set: TaskSet) -> None:
    assert task_set.observation_masks.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert task_set.action_masks.tolist() == [[1, 0], [1, 1], [1, 0]]
    assert task_set.action_masks.dtype == task_set.observation_masks.dtype == np.float32


sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=6)


@given(sizes, st.integers(1, 40), st.integers(1, 40))
def test_masks_of_any_sizes(sizes: list[tuple[int, int]], min_observation_size: int, min_action_size: int) -> None:
    tasks = [Task(str(i), None, *size) for i, size in enumerate(sizes)]
    task_set = TaskSet(tasks, min_observation_size=min_observation_size, min_action_size=min_action_size)
    assert task_set.observation_size == max(min_observation_size, max(n for n, _ in sizes))
    assert task_set.action_size == max(min_action_size, max(n for _, n in sizes))
    for masks, column in ((task_set.observation_masks, 0), (task_set.action_masks, 1)):
        assert masks.sum(1).tolist() == [size[column] for size in sizes]
        assert all((np.diff(mask) <= 0).all() for mask in masks)  # ones first
    loaded = TaskSet.from_dict(json.loads(json.dumps(task_set.to_dict())))
    assert loaded == task_set
    assert hash(loaded) == hash(task_set)


def test_dict_observations_count_all_parts() -> None:
    assert Task.from_env("dict", partial(SpaceEnv, DICT_SPACE)).observation_size == 4


def test_equality_is_about_what_a_model_depends_on(task_set: TaskSet) -> None:
    assert TaskSet.from_dict(task_set.to_dict()) == task_set
    assert TaskSet(list(task_set)[::-1]) != task_set
    assert TaskSet(list(task_set), min_action_size=3) != task_set
    assert TaskSet([Task("small", None, 3, 1, 10), *task_set[1:]]) != task_set
    assert task_set != "small"


def test_sets_can_be_pickled(task_set: TaskSet) -> None:
    assert pickle.loads(pickle.dumps(task_set)) == task_set


def test_episode_length_truncates() -> None:
    env = Task("long", partial(SpaceEnv, length=100), 3, 2, episode_length=4).make_env()
    env.reset()
    ends = [env.step(np.zeros(2))[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_environments_given_to_what_was_read(task_set: TaskSet) -> None:
    loaded = TaskSet.from_dict(task_set.to_dict(), {"swing": "Pendulum-v1"})
    assert loaded[2].make_env().spec.id == "Pendulum-v1"
    with pytest.raises(ValueError, match=r"task 'small' has no environment"):
        loaded[0].make_env()


def test_render_mode_reaches_the_environment() -> None:
    assert Task.from_env("swing", "Pendulum-v1").make_env("rgb_array").render_mode == "rgb_array"
    assert Task("swing", partial(gym.make, "Pendulum-v1"), 3, 1).make_env("rgb_array").render_mode == "rgb_array"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("lrge", "'large'"), ("swingg", "'swing'"), ("quite another", "'small', 'large', 'swing'")],
)
def test_unknown_names(task_set: TaskSet, name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown task {name!r}; nearest of the 3 names: {nearest}$"):
        task_set.task_id(name)
    with pytest.raises(ValueError, match="unknown task"):
        TaskSet.from_dict(task_set.to_dict(), {name: "Pendulum-v1"})


def test_an_environment_of_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"of task 'x' has 3 observations and 2 actions, .* declared with 3 and 1"):
        Task("x", SpaceEnv, 3, 1).make_env()


def test_a_task_larger_than_its_set(task_set: TaskSet) -> None:
    data = task_set.to_dict()
    data["tasks"][1]["action_size"] = 4
    with pytest.raises(ValueError, match=r"'large' has 5 observations and 4 actions, more than .* at most 5 and 2"):
        TaskSet.from_dict(data)


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        (partial(SpaceEnv, action_space=spaces.Discrete(2)), TypeError, "'odd': the action space must be a Box"),
        (partial(SpaceEnv, action_space=spaces.Box(-1, 1, (2, 2))), TypeError, "'odd': the action space must be a Box"),
        (partial(SpaceEnv, action_space=spaces.Box(0, np.inf, (1,))), ValueError, "'odd': .*finite bounds"),
        (partial(SpaceEnv, spaces.Discrete(2)), TypeError, "'odd': the observation space must be a Box"),
        (partial(SpaceEnv, spaces.Box(0, 255, (8, 8, 3), np.uint8)), TypeError, "'odd': the observation space"),
        (partial(SpaceEnv, spaces.Dict({"n": spaces.Discrete(2)})), TypeError, "'odd': the observation space"),
        (lambda: 3, TypeError, "function of task 'odd' must make a Gymnasium environment, not 3"),
        (3, TypeError, "'odd'.* must be the id of an environment or a function, not 3"),
    ],
)
def test_environments_that_are_no_task(env: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskSet.from_envs({"fine": SMALL_ENV, "odd": env})


NO_INTEGER: Any = 1.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TaskSet([]), ValueError, "at least one task"),
        (lambda: TaskSet(["walk"]), TypeError, "must be Task objects, not 'walk'"),  # type: ignore[list-item]
        (lambda: TaskSet([Task("a", None, 1, 1), Task("a", None, 2, 1)]), ValueError, r"more than once: \['a'\]"),
        (lambda: TaskSet([Task("a", None, 1, 1)], min_action_size=0), ValueError, "min_action_size=0"),
        (lambda: Task("", None, 1, 1), ValueError, "must not be empty"),
        (lambda: Task(3, None, 1, 1), TypeError, "must be a string"),  # type: ignore[arg-type]
        (lambda: Task("a", None, 0, 1), ValueError, "observation_size of task 'a'=0"),
        (lambda: Task("a", None, 1, NO_INTEGER), TypeError, "action_size of task 'a' must be an integer"),
        (lambda: Task("a", None, 1, 1, 0), ValueError, "episode_length of task 'a'=0"),
        (lambda: TaskSet.from_dict({"tasks": []}), ValueError, "describe no task set"),
        (lambda: TaskSet.from_dict({"tasks": [{"name": "a"}]}), ValueError, "describe no task set"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
