"""Train PWM on Dict observations: an image and a vector.

    python examples/dict_and_images.py              # some minutes on a CPU

``"MultiInputPolicy"`` puts a small convolutional network in front of every image and joins the results with the vectors
(SB3's ``CombinedExtractor``). An image is a Box of uint8 from 0 to 255 with at least 36 x 36 pixels. The script shows
how it is done; ``pixel_pendulum.py`` learns from images alone.
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

PIXELS = 36
EPISODE_STEPS = 50


class FindTheSpot(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Move a point to a bright spot: the image shows the spot, the vector says where the point is."""

    def __init__(self) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (PIXELS, PIXELS, 1), np.uint8),
                "position": spaces.Box(-1.0, 1.0, (2,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.spot = self.np_random.uniform(-0.8, 0.8, (2, 2))
        self.time = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + 0.1 * action, -1, 1)
        self.time += 1
        reward = -float(np.linalg.norm(self.position - self.spot))
        return self._observation(), reward, False, self.time >= EPISODE_STEPS, {}

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.zeros((PIXELS, PIXELS, 1), np.uint8)
        row, column = ((self.spot + 1) / 2 * (PIXELS - 1)).astype(int)
        image[row - 2 : row + 3, column - 2 : column + 3] = 255
        return {"image": image, "position": self.position.astype(np.float32)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps, at least 300")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)
    model = PWM(
        "MultiInputPolicy",
        FindTheSpot(),
        buffer_size=args.steps,  # images fill memory: two of them per step
        learning_starts=min(1_000, args.steps // 2),
        pretrain_steps=min(1_000, args.steps // 10),
        batch_size=64,
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 64}},
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    mean, std = evaluate_policy(model, Monitor(FindTheSpot()), n_eval_episodes=10)
    print(f"return {mean:.2f} (standard deviation {std:.2f})")


if __name__ == "__main__":
    main()
