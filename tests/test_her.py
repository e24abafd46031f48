"""Hindsight replay of windows, against brute force."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_pwm import PWM, SequenceHerReplayBuffer

TINY: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [16], "latent_dim": 16},
    "learning_starts": 30,
    "pretrain_steps": 3,
    "batch_size": 8,
    "critic_batch_size": 8,
    "buffer_size": 400,
    "device": "cpu",
    "seed": 0,
}


class Line(gym.Env[Any, Any]):
    """A point on a line; steps are numbered, so that every achieved goal tells its step. Ends at the goal, if asked."""

    def __init__(self, length: int = 7, ends: bool = False) -> None:
        box = spaces.Box(-1e6, 1e6, (1,), np.float32)
        self.observation_space = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.length, self.count, self.steps = length, 0, 0
        if ends:
            self.compute_terminated = self._reached

    def _observe(self) -> dict[str, np.ndarray]:
        place = np.array([self.count], np.float32)
        return {"observation": place, "achieved_goal": place, "desired_goal": np.array([-1], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.count += 1
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.steps += 1
        observation = self._observe()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}))
        return observation, reward, False, self.steps >= self.length, {"count": self.count}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> Any:
        if isinstance(infos, list) and infos and infos[0]:
            assert [info["count"] for info in infos] == achieved[..., 0].tolist()
        return -np.abs(achieved - desired)[..., 0].astype(np.float32)

    def _reached(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        return (achieved == desired)[..., 0]


def filled(
    steps: int = 60, buffer_size: int = 40, n_envs: int = 2, env_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> SequenceHerReplayBuffer:
    """A buffer through which several episodes of 7 steps have gone, and the ages of its windows' goals."""
    env = DummyVecEnv([lambda: Line(**(env_kwargs or {}))] * n_envs)
    buffer = SequenceHerReplayBuffer(
        buffer_size * n_envs, env.observation_space, env.action_space, env=env, n_envs=n_envs, device="cpu", **kwargs
    )
    observation = env.reset()
    for _ in range(steps):
        following, rewards, dones, infos = env.step(np.zeros((n_envs, 1), np.float32))
        stored: Any = copy.deepcopy(following)
        for i, info in enumerate(infos):
            if dones[i]:
                for key in stored:
                    stored[key][i] = info["terminal_observation"][key]
        buffer.add(observation, stored, np.zeros((n_envs, 1)), rewards, dones, infos)
        observation = following
    return buffer


def episodes(buffer: Any, column: int) -> Any:
    """Achieved goals of the stored steps, episode by episode."""
    found, current = [], []
    for age in range(buffer.size()):
        row = (buffer.oldest + age) % buffer.buffer_size
        current.append(buffer.next_observations["achieved_goal"][row, column, 0])
        if buffer.dones[row, column]:
            found.append(current)
            current = []
    return [*found, current] if current else found


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_windows_against_brute_force(strategy: str) -> None:
    buffer: Any = filled(goal_selection_strategy=strategy, n_sampled_goal=3, copy_info_dict=True)
    of_episode = {goal: (c, e) for c in range(2) for e in map(tuple, episodes(buffer, c)) for goal in e}
    np.random.seed(0)
    samples = buffer.sample_sequences(400, 3)
    seen = set()
    kept = samples.observations["desired_goal"][0, :, 0] == -1
    assert kept.sum() == 100  # a quarter is left as it was, anywhere in the batch
    assert 10 < kept[:100].sum() < 40
    for i in range(400):
        goals = samples.observations["desired_goal"][:, i, 0].tolist()
        achieved = samples.observations["achieved_goal"][1:, i, 0].tolist()
        assert len(set(goals)) == 1
        _, episode = of_episode[achieved[0]]
        if goals[0] != -1:
            allowed = {
                "future": [goal for goal in episode if goal >= achieved[0]],
                "final": [episode[-1]],
                "episode": list(episode),
            }[strategy]
            assert goals[0] in allowed
            seen.add((achieved[0], goals[0]))
        for t in range(3):
            if samples.mask[t, i]:
                assert samples.rewards[t, i] == -abs(achieved[t] - goals[0])
                assert achieved[t] in episode
            elif goals[0] != -1:
                assert samples.rewards[t, i] == 0
    if strategy != "final":
        assert len(seen) > 100
    assert not samples.terminations.any()


def test_every_allowed_goal_is_drawn() -> None:
    buffer: Any = filled(n_envs=1, steps=14, buffer_size=20)
    samples = buffer.sample_sequences(2_000, 1)
    pairs = zip(
        samples.observations["achieved_goal"][1, :, 0].tolist(),
        samples.observations["desired_goal"][0, :, 0].tolist(),
        strict=True,
    )
    drawn = {pair for pair in pairs if pair[1] != -1}
    expected = {(a, g) for episode in episodes(buffer, 0) for a in episode for g in episode if g >= a}
    assert drawn == expected


def test_terminations_are_computed_anew_and_end_windows() -> None:
    buffer: Any = filled(env_kwargs={"ends": True})
    samples = buffer.sample_sequences(300, 4)
    achieved = samples.observations["achieved_goal"][1:, :, 0]
    reached = achieved == samples.observations["desired_goal"][0, :, 0]
    relabelled = samples.observations["desired_goal"][0, :, 0] != -1
    assert relabelled.sum() == 240
    assert not samples.terminations[:, ~relabelled].any()
    for i in torch.nonzero(relabelled).flatten():
        hits = torch.nonzero(reached[:, i] & (samples.mask[:, i] > 0))
        assert len(hits) == samples.terminations[:, i].sum() <= 1
        if len(hits):
            assert samples.terminations[hits[0], i] == 1
            assert not samples.mask[hits[0] + 1 :, i].any()
    assert (reached[:, relabelled] & (samples.mask[:, relabelled] > 0)).any()


class Careful(Line):
    """Answers for steps that were recorded, and for nothing else."""

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> Any:
        assert np.all(achieved > 0)
        if isinstance(infos, list):
            assert [info["count"] for info in infos] == achieved[..., 0].tolist()
        return super().compute_reward(achieved, desired, infos)


def test_only_steps_that_count_are_asked_for() -> None:
    """Behind the newest step lie rows that hold nothing."""
    env = DummyVecEnv([Careful])
    buffer: Any = SequenceHerReplayBuffer(
        40, env.observation_space, env.action_space, env=env, device="cpu", copy_info_dict=True
    )
    observation = env.reset()
    for _ in range(4):
        following, rewards, dones, infos = env.step(np.zeros((1, 1), np.float32))
        buffer.add(observation, following, np.zeros((1, 1)), rewards, dones, infos)
        observation = following
    samples = buffer.sample_sequences(100, 5)
    assert (samples.mask.sum(0) < 5).all()
    assert (samples.rewards[samples.mask == 0] == 0).all()


def test_diagnostics_see_what_was_recorded() -> None:
    buffer: Any = filled()
    assert (buffer.spread_sequences(50, 2).observations["desired_goal"] == -1).all()


def test_pwm_takes_sb3s_buffer_and_learns() -> None:
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=True), 2)
    model = PWM(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "final"},
        **TINY,
    ).learn(80)
    assert isinstance(model.replay_buffer, SequenceHerReplayBuffer)
    assert model._n_updates > 0
    assert model.replay_buffer.env is model.env


def test_discrete_actions() -> None:
    env = BitFlippingEnv(n_bits=4, continuous=False)
    model = PWM("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **TINY).learn(50)
    assert model._n_updates > 0
    assert model._sample(5).actions.shape == (model.sequence_length, 5, 4)


def test_the_environment_may_be_in_processes() -> None:
    env = SubprocVecEnv([lambda: Line()] * 2)
    try:
        model = PWM("MultiInputPolicy", env, replay_buffer_class=SequenceHerReplayBuffer, **TINY).learn(40)
        assert model._n_updates > 0
    finally:
        env.close()


def test_rewards_and_observations_are_normalised() -> None:
    buffer: Any = filled()
    env = VecNormalize(DummyVecEnv([lambda: Line()] * 2))
    env.obs_rms["observation"].mean[:] = 5.0
    env.ret_rms.var = np.array(4.0)
    np.random.seed(0)
    plain = buffer.sample_sequences(50, 1)
    np.random.seed(0)
    normalized = buffer.sample_sequences(50, 1, env)
    expected = env.normalize_obs({key: value.numpy() for key, value in plain.observations.items()})
    for key, value in expected.items():
        np.testing.assert_allclose(normalized.observations[key], value, rtol=1e-6)
    np.testing.assert_allclose(normalized.rewards, env.normalize_reward(plain.rewards.numpy()), rtol=1e-6)


def test_saved_buffers_ask_the_new_environment(tmp_path: Path) -> None:
    model = PWM("MultiInputPolicy", Line(), replay_buffer_class=HerReplayBuffer, **TINY).learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    other = Line()
    loaded = PWM.load(tmp_path / "model", env=other, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.env is loaded.env
    loaded.learn(10, reset_num_timesteps=False)
    loaded.set_env(Line())
    assert loaded.replay_buffer.env is loaded.env
    with pytest.raises(ValueError, match="stays with its number of environments"):
        loaded.set_env(DummyVecEnv([Line, Line]))
    assert pickle.loads(pickle.dumps(loaded.replay_buffer)).env is None


def test_a_buffer_that_sac_filled(tmp_path: Path) -> None:
    sac = SAC("MultiInputPolicy", Line(), replay_buffer_class=HerReplayBuffer, learning_starts=100, buffer_size=400)
    sac.learn(30)
    sac.save_replay_buffer(tmp_path / "buffer")
    model = PWM("MultiInputPolicy", Line(), replay_buffer_class=HerReplayBuffer, **TINY)
    model.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(model.replay_buffer, SequenceHerReplayBuffer)
    observations: Any = model._sample(20).observations
    assert (observations["desired_goal"][0] != -1).any()
    assert model.learn(20)._n_updates > 0


def test_a_buffer_without_hindsight_is_noticed(tmp_path: Path) -> None:
    PWM("MultiInputPolicy", Line(), **TINY).learn(40).save_replay_buffer(tmp_path / "buffer")
    model = PWM("MultiInputPolicy", Line(), replay_buffer_class=HerReplayBuffer, **TINY)
    with pytest.warns(UserWarning, match="not filled for hindsight: its goals stay as recorded"):
        model.load_replay_buffer(tmp_path / "buffer")


class Doubled(Line):
    """The same line, on which every distance counts twice."""

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> Any:
        return 2 * super().compute_reward(achieved, desired, infos)


def rewards_per_distance(model: PWM) -> set[float]:
    """What the rewards of relabelled windows are for a distance of 1 to the goal."""
    samples = model._sample(50, length=1)
    observations: Any = samples.observations
    goals = observations["desired_goal"][0, :, 0]
    distances = (observations["achieved_goal"][1, :, 0] - goals).abs()
    counted = (goals != -1) & (distances > 0)
    return set((samples.rewards[0] / distances)[counted].tolist())


def test_a_model_asks_its_own_environment(tmp_path: Path) -> None:
    """However the buffer came into it: assigned, copied or unpickled with the model or alone."""
    model = PWM("MultiInputPolicy", Line(), replay_buffer_class=HerReplayBuffer, **TINY).learn(40)
    other = PWM("MultiInputPolicy", Doubled(), replay_buffer_class=HerReplayBuffer, **TINY)
    other.replay_buffer = model.replay_buffer
    assert rewards_per_distance(other) == {-2.0}
    assert rewards_per_distance(model) == {-1.0}
    model.save(tmp_path / "model", include=["replay_buffer"])
    other.replay_buffer = pickle.loads(pickle.dumps(model.replay_buffer))
    loaded = PWM.load(tmp_path / "model", env=Doubled(), device="cpu")
    for copied, expected in (
        (other, -2.0),
        (loaded, -2.0),
        (copy.deepcopy(model), -1.0),
        (pickle.loads(pickle.dumps(model)), -1.0),
    ):
        assert rewards_per_distance(copied) == {expected}
        copied.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("weights_only", [False, True])
def test_models_load_without_environment(tmp_path: Path, weights_only: bool) -> None:
    model = PWM(
        "MultiInputPolicy",
        Line(),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 1, "goal_selection_strategy": GoalSelectionStrategy.FINAL},
        **TINY,
    ).learn(40)
    model.save(tmp_path / "model")
    loaded: Any = PWM.load(tmp_path / "model", device="cpu", weights_only=weights_only)
    observation, _ = Line().reset()
    assert loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    loaded.set_env(Line())
    loaded.learn(40)
    assert rewards_per_distance(loaded) == {-1.0}
    assert loaded.replay_buffer.her_ratio == 0.5
    assert loaded.replay_buffer.goal_selection_strategy is GoalSelectionStrategy.FINAL


class OneByOne(Line):
    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> Any:
        return -abs(float(np.ravel(achieved)[0] - np.ravel(desired)[0]))


class OneByZero(Line):
    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> Any:
        return np.where(desired > 0, -np.inf, 0)[..., 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match='allowed are "future", "final", "episode"'):
        filled(goal_selection_strategy="past")
    for number, kind in ((-1, ValueError), (-2, ValueError), (1.5, TypeError), ("a", TypeError)):
        with pytest.raises(kind, match="n_sampled_goal"):
            filled(n_sampled_goal=number)
    with pytest.raises(TypeError, match="copy_info_dict must be True or False"):
        filled(copy_info_dict="no")
    box = spaces.Box(-1, 1, (1,), np.float32)
    with pytest.raises(ValueError, match="needs achieved_goal and desired_goal"):
        SequenceHerReplayBuffer(10, spaces.Dict({"observation": box}), box, env=None)
    buffer: Any = filled()
    buffer.env = None
    with pytest.raises(ValueError, match="needs an environment that computes rewards"):
        buffer.sample_sequences(5, 1)
    model = PWM.from_dataset(buffer, "MultiInputPolicy", **{k: v for k, v in TINY.items() if k != "buffer_size"})
    with pytest.raises(ValueError, match="needs an environment that computes rewards"):
        model.learn_offline(2)
    buffer.env = DummyVecEnv([OneByOne] * 2)
    with pytest.raises(ValueError, match="compute_reward of the environment must answer for many goals at once"):
        buffer.sample_sequences(5, 1)
    buffer.env = DummyVecEnv([OneByZero] * 2)
    with pytest.raises(ValueError, match=r"compute_reward of the environment returned -inf for .* and the goal"):
        buffer.sample_sequences(50, 1)
