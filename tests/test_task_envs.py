import sys
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import SMALL, SMALL_POLICY, SpaceEnv
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_pwm import PWM
from sb3_pwm.callbacks import TaskLogCallback
from sb3_pwm.multitask.envs import PaddedTaskEnv, pad, single_task_env, task_vec_env
from sb3_pwm.multitask.tasks import Task, TaskSet


class Echo(gym.Env[Any, Any]):
    """Shows the last action; the reward is its first number, and an action above 0.5 there is a success."""

    def __init__(
        self,
        n_observations: int = 3,
        low: tuple[int, ...] = (-1,),
        high: tuple[int, ...] = (1,),
        dtype: Any = np.float32,
    ) -> None:
        self.n_observations = n_observations
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_observations,), np.float64)
        self.action_space = spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.arange(1.0, self.n_observations + 1), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.action = action
        observation = np.resize(action, self.n_observations).astype(np.float64)
        return observation, action[0], False, False, {"success": float(action[0] > 0.5)}


TASKS = TaskSet(
    [
        Task("echo", Echo, 3, 1, 4),
        Task("wide", partial(Echo, 5, (-2, 0), (2, 10)), 5, 2, 6),
        Task("plain", partial(SpaceEnv, length=100), 3, 2, 5),
    ]
)


def padded(
    env: Any, name: str = "echo", task_id: int = 0, n_tasks: int = 3, observation_size: int = 5, action_size: int = 2
) -> PaddedTaskEnv:
    return PaddedTaskEnv(env, name, task_id, n_tasks, observation_size, action_size)


numbers = st.floats(-1e6, 1e6, width=32)


@given(st.data(), st.integers(0, 20), st.integers(0, 20))
def test_padding_round_trip(data: st.DataObject, size: int, extra: int) -> None:
    values = data.draw(arrays(np.float64, size, elements=numbers))
    result = pad(values, size + extra)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:size], values)
    assert not result[size:].any()
    assert len(result) == size + extra


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    size = draw(st.integers(1, 6))
    low = draw(arrays(np.float32, size, elements=st.floats(-100, 100, width=32)))
    width = draw(arrays(np.float32, size, elements=st.floats(float(np.float32(0.001)), 100, width=32)))
    return low, low + width, draw(st.sampled_from([np.float32, np.float64]))


@given(st.data(), boxes(), st.integers(1, 8), st.integers(0, 5), st.integers(0, 5))
def test_environments_of_any_size(
    data: st.DataObject, box: tuple[Any, Any, Any], n_observations: int, extra_observations: int, extra_actions: int
) -> None:
    env = Echo(n_observations, *box)
    low, high, _ = (np.asarray(b, np.float64) if i < 2 else b for i, b in enumerate(box))
    size = len(low)
    wrapped = padded(env, observation_size=n_observations + extra_observations, action_size=size + extra_actions)
    observation, _ = wrapped.reset()
    assert observation["observation"].tolist() == [*range(1, n_observations + 1), *[0] * extra_observations]
    assert wrapped.observation_space.contains(observation)
    action = data.draw(arrays(np.float32, size + extra_actions, elements=st.floats(-1, 1, width=32)))
    observation, *_ = wrapped.step(action)  # Echo checks the bounds
    np.testing.assert_allclose(env.action, low + (action[:size] + 1) / 2 * (high - low), rtol=1e-5, atol=1e-5)
    for bound, end in ((-1, low), (1, high), (-2, low), (2, high)):
        wrapped.step(np.full(size + extra_actions, bound, np.float32))
        np.testing.assert_allclose(env.action, end, rtol=1e-6)
    assert observation["observation"].shape == (n_observations + extra_observations,)


def test_padded_actions_have_no_effect() -> None:
    env = padded(Echo())
    env.reset()
    first, second = (env.step(np.array([0.25, padding]))[:2] for padding in (-1, 1))
    assert first[1] == second[1] == 0.25
    np.testing.assert_array_equal(first[0]["observation"], second[0]["observation"])


def test_dict_observations_keep_their_order() -> None:
    parts = {"b": spaces.Box(0, 1, (2,)), "a": spaces.Box(2, 3, (1,)), "c": spaces.Box(4, 5, ())}
    env = padded(SpaceEnv(spaces.Dict(list(parts.items()))))  # a list keeps the order, a dictionary is sorted
    for observation in (env.reset(seed=0)[0], env.step(np.zeros(2))[0]):
        assert np.floor(observation["observation"]).tolist() == [0, 0, 2, 4, 0]


def test_observations_name_the_task() -> None:
    for task_id, name in enumerate(TASKS.names):
        env = single_task_env(TASKS, name)
        observation, _ = env.reset()
        assert observation["task"] == task_id
        space: Any = env.observation_space
        assert space["task"] == spaces.Discrete(3)
        assert env.step(np.zeros(2, np.float32))[-1]["task"] == name


@pytest.mark.parametrize("name", TASKS.names)
def test_sb3_accepts_the_environments(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(single_task_env(TASKS, name))


def test_success_gets_sb3s_name() -> None:
    env = padded(Echo())
    env.reset()
    assert [env.step(np.array([action, 0]))[-1]["is_success"] for action in (0.4, 0.6)] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation_size": 2}, "'echo' has 3 observations and 1 actions, more than .* at most 2 and 2"),
        ({"task_id": 3}, "task_id=3 is out of range; allowed: 0 to 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        padded(Echo(), **arguments)


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match="unknown task 'ech'; nearest of the 3 names: 'echo'"):
        single_task_env(TASKS, "ech")


def test_each_step_of_the_vector_is_a_step_of_every_task() -> None:
    env: Any = task_vec_env(TASKS, seed=3)
    observations = env.reset()
    assert observations["task"].tolist() == [0, 1, 2]
    assert observations["observation"][0].tolist() == [1, 2, 3, 0, 0]
    ends: dict[str, list[int]] = {}
    for step in range(1, 13):
        observations, rewards, dones, infos = env.step(np.full((3, 2), 0.5, np.float32))
        assert observations["task"].tolist() == [0, 1, 2]
        np.testing.assert_allclose(rewards, [0.5, 1.0, 1.0])  # 0.5 of [-1, 1], of [-2, 2], and the sum of two
        for info in (info for info, done in zip(infos, dones, strict=True) if done):
            assert info["TimeLimit.truncated"]
            ends.setdefault(info["task"], []).append(step)
            assert info["episode"]["task"] == info["task"]
            assert info["episode"]["l"] == TASKS[TASKS.task_id(info["task"])].episode_length
    assert ends == {"echo": [4, 8, 12], "wide": [6, 12], "plain": [5, 10]}


def test_seeds_differ_between_tasks_and_repeat() -> None:
    tasks = TaskSet([Task(name, SpaceEnv, 3, 2) for name in "ab"])
    resets: list[Any] = [task_vec_env(tasks, seed=seed).reset() for seed in (5, 5, 6)]
    first, again, other = (observations["observation"] for observations in resets)
    np.testing.assert_array_equal(first, again)
    assert not (first[0] == first[1]).any()
    np.testing.assert_array_equal(first[1], other[0])


def test_subprocesses() -> None:
    env: Any = task_vec_env(TASKS, SubprocVecEnv, {"start_method": "forkserver"})
    try:
        assert env.reset()["task"].tolist() == [0, 1, 2]
    finally:
        env.close()


def test_vec_normalize_leaves_the_task_alone() -> None:
    with pytest.raises(ValueError, match="task"):
        VecNormalize(task_vec_env(TASKS))
    env = VecNormalize(task_vec_env(TASKS), norm_obs_keys=["observation"])
    assert env.reset()["task"].tolist() == [0, 1, 2]


def model_of(tasks: TaskSet, **kwargs: Any) -> PWM:
    return PWM("MultiInputPolicy", task_vec_env(tasks, seed=0), policy_kwargs=SMALL_POLICY, **(SMALL | kwargs))


class Values(Logger):
    """Keeps all values that were ever written."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.written: dict[str, Any] = {}

    def dump(self, step: int = 0) -> None:
        self.written |= self.name_to_value
        super().dump(step)


def test_pwm_learns_over_the_tasks() -> None:
    model = model_of(TASKS, train_freq=1).learn(300)
    buffer = model.replay_buffer
    assert model.n_model_updates > 50
    assert buffer.observations["task"].dtype == np.int64
    assert buffer.observations["task"][:5].squeeze(-1).tolist() == [[0, 1, 2]] * 5
    size = buffer.size()
    np.testing.assert_array_equal(buffer.observations["observation"][:size, 0, 3:], 0)
    assert buffer.timeouts[:size].sum(0).tolist() == [size // 4, size // 6, size // 5]
    assert buffer.dones[:size].sum(0).tolist() == [size // 4, size // 6, size // 5]
    env = single_task_env(TASKS, "wide")
    action, _ = model.predict(env.reset()[0], deterministic=True)
    assert env.action_space.contains(action)


@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_values_per_task_are_logged() -> None:
    model = model_of(TASKS, learning_starts=1_000)
    model.set_logger(logger := Values())
    episodes: list[dict[str, Any]] = []

    def remember(local: dict[str, Any], _: dict[str, Any]) -> bool:
        episodes.extend(info["episode"] for info in local["infos"] if "episode" in info)
        return True

    model.learn(300, callback=[TaskLogCallback(stats_window_size=10), ConvertCallback(remember)], log_interval=1)
    for task in TASKS:
        own = [episode for episode in episodes if episode["task"] == task.name][-10:]
        assert logger.written[f"rollout/{task.name}/ep_rew_mean"] == pytest.approx(np.mean([e["r"] for e in own]))
        assert logger.written[f"rollout/{task.name}/ep_len_mean"] == task.episode_length
    success = {key: value for key, value in logger.written.items() if "success" in key}
    names = {f"rollout/{task}/success_{kind}" for task in ("echo", "wide") for kind in ("rate", "once_rate")}
    assert set(success) == {*names, "rollout/success_rate"}
    # Actions are random, and a quarter of them lie above 0.5: one of an episode's four more often than its last.
    assert 0 < success["rollout/echo/success_rate"] < success["rollout/echo/success_once_rate"] <= 1


def test_a_success_counts_for_its_own_episode_only() -> None:
    callback = TaskLogCallback()
    callback.init_callback(model := model_of(TASKS))
    model.set_logger(logger := Values())
    end = {"episode": {"task": "echo", "r": 0, "l": 2}}
    for infos in (
        [{"is_success": True}, {"is_success": False}],
        [{"is_success": False} | end, {"is_success": False}],
        [{"is_success": False} | end, {"is_success": True} | end],
    ):
        callback.locals = {"infos": infos}
        callback._on_step()
    logger.dump()
    assert logger.written["rollout/echo/success_rate"] == pytest.approx(1 / 3)
    assert logger.written["rollout/echo/success_once_rate"] == pytest.approx(2 / 3)


def test_learning_offline_has_no_episodes_to_log() -> None:
    callback = TaskLogCallback()
    model = model_of(TASKS).learn(60, callback=callback)
    model.set_logger(logger := Values())
    model.learn_offline(2, callback=callback, log_interval=1)
    assert model.num_timesteps == 2
    assert "train/actor_loss" in logger.written
    assert not [key for key in logger.written if key.startswith("rollout/")]


@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_long_names_stay_out_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("x", "a-name-longer-than-the-printed-table")
    model = model_of(TaskSet([Task(name, Echo, 3, 1, 4) for name in names]), learning_starts=1_000)
    for verbose in (1, 0):
        model.set_logger(Logger(None, [HumanOutputFormat(sys.stdout)]))
        model.learn(24, callback=TaskLogCallback(verbose=verbose), log_interval=1)
        assert ("x/ep_rew_mean" in capsys.readouterr().out) == bool(verbose)


def test_the_callback_checks_its_window() -> None:
    with pytest.raises(ValueError, match="stats_window_size=0"):
        TaskLogCallback(0)
