"""Train PWM on one environment, compare it with random actions, and record a video.

    python examples/quickstart.py                                   # HalfCheetah-v5, some minutes on a CPU
    python examples/quickstart.py --env Pendulum-v1 --steps 3000    # less than a minute

Writes the model (``model.zip``) and a video of one episode (``episode.mp4``) to ``--out``. Without the means to render
the video is left out. Ctrl-C saves the model as far as it is.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM
from sb3_pwm.video import record_video, use_headless_rendering

MIN_STEPS = 300  # a third of them random actions
EVALUATION_SEED = 10_000  # of an environment that training has not seen


class RandomPolicy:
    """Uniform random actions, in the form that ``evaluate_policy`` asks for."""

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        return np.array([self.action_space.sample()]), state  # for the one environment of the evaluation


def evaluate(policy: Any, env: gym.Env[Any, Any], episodes: int) -> tuple[float, float]:
    env.reset(seed=EVALUATION_SEED)
    mean, std = evaluate_policy(policy, env, n_eval_episodes=episodes)
    return float(mean), float(std)  # type: ignore[arg-type]


def make_video(model: PWM, env_id: str, path: Path) -> None:
    try:
        [episode_return] = record_video(model, env_id, path, seed=EVALUATION_SEED)
    except RuntimeError as error:
        print(f"no video: {error}")
    else:
        print(f"video of one episode (return {episode_return:.1f}): {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="id of a Gymnasium environment")
    parser.add_argument("--steps", type=int, default=12_000, help=f"environment steps, at least {MIN_STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for the model and the video")
    args = parser.parse_args(arguments)
    if args.steps < MIN_STEPS:
        parser.error(f"--steps must be at least {MIN_STEPS}")
    if args.episodes < 1:
        parser.error("--episodes must be at least 1")

    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    use_headless_rendering()
    args.out.mkdir(parents=True, exist_ok=True)
    model_file = args.out / "model.zip"

    model = PWM("MlpPolicy", args.env, seed=args.seed, device="cpu")
    print(f"training PWM on {args.env} for {args.steps} steps: first random ones, then the world model is fitted")
    start = time.perf_counter()
    try:
        model.learn(args.steps, progress_bar=find_spec("rich") is not None)
    except KeyboardInterrupt:
        model.save(model_file)
        print(f"interrupted after {model.num_timesteps} steps; the model so far: {model_file}")
        return 130
    seconds = time.perf_counter() - start
    model.save(model_file)

    env = Monitor(gym.make(args.env))
    rows = [
        ("PWM", *evaluate(model, env, args.episodes), model.num_timesteps, seconds),
        ("random", *evaluate(RandomPolicy(env.action_space, args.seed), env, args.episodes), 0, 0.0),
    ]
    env.close()
    print(f"\n{args.env}, {args.episodes} episodes each")
    print(f"{'policy':8}{'return mean':>12}{'std':>10}{'env steps':>12}{'seconds':>10}")
    for name, mean, std, steps, taken in rows:
        print(f"{name:8}{mean:12.1f}{std:10.1f}{steps:12d}{taken:10.0f}")
    print(f"\nmodel: {model_file}")
    make_video(model, args.env, args.out / "episode.mp4")
    return 0


if __name__ == "__main__":
    sys.exit(main())
