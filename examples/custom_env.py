"""Train PWM in an environment of your own, whose episodes terminate.

    python examples/custom_env.py                   # about a minute on a CPU
    python examples/custom_env.py --steps 10000

What an environment needs: a Box of actions with finite bounds, and ``terminated`` (the episode is over) kept apart from
``truncated`` (only the time is up). Neither observations nor rewards need to be scaled.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM

SECONDS = 0.05  # per step
ACCELERATION = 5.0  # m/s^2 at full tilt
HALF_LENGTH = 1.0  # of the beam, m


class BallOnBeam(gym.Env[np.ndarray, np.ndarray]):
    """Keep a ball on a beam by tilting it: 1 per step in the middle, 0 at the ends, and over when it falls off."""

    def __init__(self, max_steps: int = 200) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position in m, velocity in m/s
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)  # tilt
        self.max_steps = max_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-0.5, 0.5, 2)
        self.time = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.velocity += SECONDS * ACCELERATION * float(action[0])
        self.position += SECONDS * self.velocity
        self.time += 1
        terminated = bool(abs(self.position) > HALF_LENGTH)
        reward = 0.0 if terminated else 1 - float(self.position / HALF_LENGTH) ** 2
        return self._observation(), reward, terminated, not terminated and self.time >= self.max_steps, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.velocity], np.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_500, help="environment steps, at least 300")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)  # faster than more threads for networks of this size
    check_env(BallOnBeam())  # SB3's: says what does not fit before anything is trained
    warm_up = min(500, args.steps // 2)
    model = PWM(
        "MlpPolicy", BallOnBeam(), learning_starts=warm_up, pretrain_steps=warm_up, seed=args.seed, device="cpu"
    )
    for label, steps in (("before", 0), ("after", args.steps)):
        if steps:
            model.learn(steps)
        mean, std = evaluate_policy(model, Monitor(BallOnBeam()), n_eval_episodes=10)
        print(f"return {label} training: {mean:.2f} (standard deviation {std:.2f})")


if __name__ == "__main__":
    main()
