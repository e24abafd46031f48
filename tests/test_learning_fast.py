from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch

from sb3_pwm import PWM

EDGE, REACH, TIME_LIMIT = 1.5, 0.2, 20


def point_step(positions: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move (N, 2) points; each step gives 1 - |x|^2 / 2, and leaving the circle of radius ``EDGE`` ends the episode."""
    positions = positions + REACH * actions
    squares = (positions**2).sum(-1)
    return positions, 1 - squares / 2, squares > EDGE**2


class PointEnv(gym.Env[Any, Any]):
    """Only the spaces: the tests step all points at once."""

    observation_space = gym.spaces.Box(-2, 2, (2,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, dtype=np.float32), {}


def start_positions(n: int) -> np.ndarray:
    return np.random.uniform(-1.2, 1.2, (n, 2)).astype(np.float32)


def fill(buffer: Any, n_steps: int) -> None:
    """Random actions in one environment, with time-outs."""
    position, age = start_positions(1), 0
    for _ in range(n_steps):
        action = act_at_random(position)
        following, reward, terminated = point_step(position, action)
        age += 1
        timed_out = age == TIME_LIMIT and not terminated[0]
        done = terminated | timed_out
        buffer.add(position, following, action, reward, done, [{"TimeLimit.truncated": bool(timed_out)}])
        position, age = (start_positions(1), 0) if done[0] else (following, age)


def mean_return(act: Callable[[np.ndarray], np.ndarray], n_episodes: int = 500) -> float:
    """Undiscounted return of a policy in the true environment."""
    positions = start_positions(n_episodes)
    returns, running = np.zeros(n_episodes), np.ones(n_episodes, dtype=bool)
    for _ in range(TIME_LIMIT):
        positions, rewards, terminated = point_step(positions, act(positions))
        returns += running * rewards
        running &= ~terminated
    return returns.mean()


def act_at_random(positions: np.ndarray) -> np.ndarray:
    return np.random.uniform(-1, 1, positions.shape).astype(np.float32)


def walk_to_the_centre(positions: np.ndarray) -> np.ndarray:
    return np.clip(-positions / REACH, -1, 1)


def make_model(critic: Literal["q", "v"] = "q") -> PWM:
    model = PWM(
        "MlpPolicy",
        PointEnv(),
        learning_rate=3e-3,
        critic=critic,
        gamma=0.9,
        buffer_size=2_000,
        batch_size=64,
        critic_batch_size=128,
        policy_kwargs={"net_arch": [64], "latent_dim": 16},
        seed=0,
        device="cpu",
    )
    fill(model.replay_buffer, 2_000)
    return model


def mean_losses(model: PWM, updates: Callable[[], Any]) -> dict[str, float]:
    model._learner.pop_metrics()
    updates()
    return model._learner.pop_metrics()


def test_the_world_model_learns_the_environment() -> None:
    model = make_model()
    before = mean_losses(model, lambda: model.pretrain(5))
    model.pretrain(400)
    after = mean_losses(model, lambda: model.pretrain(5))
    assert after["reward_loss"] < before["reward_loss"] / 6
    assert after["termination_loss"] < before["termination_loss"] / 3
    assert after["world_model_loss"] < before["world_model_loss"] / 5

    positions = start_positions(2_000)
    actions = act_at_random(positions)
    _, rewards, terminated = point_step(positions, actions)
    world_model = model.policy.world_model
    with torch.no_grad():
        latents = world_model.encode(torch.as_tensor(positions))
        scaled = world_model.rewards(latents, torch.as_tensor(actions))
        ended = 1 - world_model.continuations(world_model.next_latents(latents, torch.as_tensor(actions)))
    # rewards in the environment's units
    assert np.mean(((scaled * model.policy.reward_scale.scale).numpy() - rewards) ** 2) < 0.3 * rewards.var()
    assert ended[terminated].mean() > 4 * ended[~terminated].mean()


@pytest.mark.parametrize("critic", ["q", pytest.param("v", marks=pytest.mark.slow)])
def test_the_policy_learns_in_imagination(critic: Literal["q", "v"]) -> None:
    model = make_model(critic)
    model.pretrain(150)
    before = mean_losses(model, lambda: model.train(5, batch_size=64))
    model.train(120, batch_size=64)
    after = mean_losses(model, lambda: model.train(5, batch_size=64))
    assert after["imagined_return"] > before["imagined_return"] + 3
    # and in the environment, of which it has seen random actions only
    learnt = mean_return(lambda positions: model.predict(positions, deterministic=True)[0])
    random, best = mean_return(act_at_random), mean_return(walk_to_the_centre)
    assert learnt > random + 0.7 * (best - random)
    assert model.n_skipped_updates == 0
