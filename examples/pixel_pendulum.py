"""Train PWM on images alone: Pendulum, seen as its last three pictures of 36 x 36 pixels.

    python examples/pixel_pendulum.py               # some five minutes on a CPU

``"CnnPolicy"`` puts a small convolutional network (SB3's ``NatureCNN``) in front of the world model. One picture does
not show how fast the pendulum swings, so that three are an image with three channels. Importing this module registers
``PixelPendulum-v0``, also for ``sb3-pwm benchmark --env pixel_pendulum:PixelPendulum-v0``. A buffer holds two images
per step: keep ``buffer_size`` no larger than the run.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM

PIXELS = 36  # the fewest that NatureCNN takes
CHANNELS = 3  # SB3 takes a Box for an image if it has 1, 3 or 4
AXIS = (np.arange(PIXELS) - (PIXELS - 1) / 2) / (PIXELS / 2)  # columns from -1 to 1
LENGTH, WIDTH = 0.8, 0.1  # of the rod


class LastPictures(gym.ObservationWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """Pendulum's last pictures, the oldest in the first channel; at the start of an episode they are all the same."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (PIXELS, PIXELS, CHANNELS), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.pictures: np.ndarray | None = None
        return super().reset(**kwargs)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        picture = draw(*observation[:2])[..., None]
        last = np.repeat(picture, CHANNELS, -1) if self.pictures is None else self.pictures
        self.pictures = np.concatenate([last[..., 1:], picture], -1)
        return self.pictures


def draw(up: float, right: float) -> np.ndarray:
    """Draw a rod from the middle towards (right, up), a point on the unit circle; (PIXELS, PIXELS) uint8."""
    x, y = AXIS, -AXIS[:, None]
    along = np.clip(x * right + y * up, 0, LENGTH)
    distance = np.hypot(x - along * right, y - along * up)
    picture: np.ndarray = (255 * np.clip(2 - 1.5 * distance / WIDTH, 0, 1)).astype(np.uint8)
    return picture


def make(**kwargs: Any) -> gym.Env[np.ndarray, np.ndarray]:
    return LastPictures(gym.make("Pendulum-v1", **kwargs))


gym.register("PixelPendulum-v0", make)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps, at least 300")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)
    model = PWM(
        "CnnPolicy",
        "PixelPendulum-v0",
        buffer_size=args.steps,
        learning_starts=min(1_000, args.steps // 2),
        pretrain_steps=min(1_000, args.steps // 10),
        seed=args.seed,
        device="cpu",
        verbose=1,
    )
    model.learn(args.steps)
    mean, std = evaluate_policy(model, Monitor(make()), n_eval_episodes=10)
    print(f"return {mean:.2f} (standard deviation {std:.2f})")


if __name__ == "__main__":
    main()
