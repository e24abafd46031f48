"""Train PWM in an environment of your own, whose episodes terminate.

    python examples/custom_env.py                   # about a minute on a CPU
    python examples/custom_env.py --steps 10000

What an environment needs: actions that are discrete, or a Box with finite bounds; and ``terminated`` (the episode is
over) kept apart from ``truncated`` (only the time is up, which Gymnasium says for registered environments). Neither
observations nor rewards need to be scaled. For a comparison it must be registered, and for videos it must take
``render_mode`` and draw itself:

    cd examples
    sb3-pwm benchmark --env custom_env:BallOnBeam-v0 --algo pwm sac --seeds 0 1 2 --steps 5000 --eval-every 1000
    sb3-pwm report results --out report
    sb3-pwm record results/custom_env-BallOnBeam-v0/pwm/0/model.zip --env custom_env:BallOnBeam-v0 --out beam.mp4
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

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  # as Gymnasium has it

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position in m, velocity in m/s
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)  # tilt
        self.render_mode = render_mode
        self.tilt = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-0.5, 0.5, 2)
        self.tilt = 0.0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.tilt = float(action[0])
        self.velocity += SECONDS * ACCELERATION * self.tilt
        self.position += SECONDS * self.velocity
        terminated = bool(abs(self.position) > HALF_LENGTH)
        reward = 0.0 if terminated else 1 - float(self.position / HALF_LENGTH) ** 2
        return self._observation(), reward, terminated, False, {}

    def render(self) -> np.ndarray:
        """Return a (100, 200, 3) picture: the grey beam goes down where the ball speeds up to."""
        x, y = np.meshgrid(np.linspace(-HALF_LENGTH, HALF_LENGTH, 200), np.linspace(0.5, -0.5, 100))
        beam = -0.3 * self.tilt * x
        picture = np.full((100, 200, 3), 255, np.uint8)
        picture[abs(y - beam) < 0.02] = 128
        height = 0.12 - 0.3 * self.tilt * self.position
        picture[(x - self.position) ** 2 + (y - height) ** 2 < 0.1**2] = (0, 114, 178)
        return picture

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.velocity], np.float32)


gym.register("BallOnBeam-v0", lambda **kwargs: BallOnBeam(**kwargs), max_episode_steps=200)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_500, help="environment steps, at least 300")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    check_env(gym.make("BallOnBeam-v0").unwrapped)  # SB3's: says what does not fit before anything is trained
    warm_up = min(500, args.steps // 2)
    model = PWM(
        "MlpPolicy", "BallOnBeam-v0", learning_starts=warm_up, pretrain_steps=warm_up, seed=args.seed, device="cpu"
    )
    for label, steps in (("before", 0), ("after", args.steps)):
        if steps:
            model.learn(steps)
        mean, std = evaluate_policy(model, Monitor(gym.make("BallOnBeam-v0")), n_eval_episodes=10)
        print(f"return {label} training: {mean:.2f} (standard deviation {std:.2f})")


if __name__ == "__main__":
    main()
