"""Measure one learning curve: one algorithm, one environment, one seed, one CSV file.

The runs of the set "online" in docs/research/runs.csv come from this script, for PWM and for the SB3 baselines alike:

    python examples/research/learning_curve.py --algo pwm --env HalfCheetah-v5 --seed 0 --steps 100000 --out pwm.csv
    python examples/research/learning_curve.py --algo sac --env HalfCheetah-v5 --seed 0 --steps 100000 --out sac.csv

One torch thread, on a CPU unless ``--device`` says otherwise. The evaluation (a separate environment with seeds of its
own, deterministic actions) is not counted in ``cpu_seconds`` and ``wall_seconds``. ``success_rate`` is the share of
evaluation episodes that were successful at their last step, ``success_once_rate`` at any step, where the environment
says so. ``--set name=value`` (JSON values) overrides a constructor argument.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM
from sb3_pwm.benchmark.evaluate import Successes

# The RL-Zoo's settings for the MuJoCo tasks; what is not named is SB3's default.
BASELINES: dict[str, tuple[type[BaseAlgorithm], dict[str, Any]]] = {
    "sac": (SAC, {"learning_starts": 10_000}),
    "td3": (
        TD3,
        {"learning_starts": 10_000, "train_freq": 1, "batch_size": 256, "learning_rate": 1e-3},
    ),
}
FIELDS = (
    "algorithm",
    "environment",
    "seed",
    "env_steps",
    "return_mean",
    "return_std",
    "episodes",
    "train_return",
    "cpu_seconds",
    "wall_seconds",
    "value_calibration",
    "success_rate",
    "success_once_rate",
    "settings",
)


def start_file(path: Path, fields: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.DictWriter(file, fields).writeheader()


class CurveCallback(BaseCallback):
    """Evaluate every ``every`` steps and append a row to the CSV file."""

    fields: tuple[str, ...] = FIELDS

    def __init__(self, env_id: str, every: int, episodes: int, row: dict[str, Any], out: Path) -> None:
        super().__init__()
        self.env_id, self.every, self.episodes, self.row, self.out = env_id, every, episodes, row, out
        self.evaluation_cpu = self.evaluation_wall = 0.0
        self.rows: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.cpu_start, self.wall_start = time.process_time(), time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every < self.training_env.num_envs:
            self.evaluate()
        return True

    def measure(self) -> dict[str, Any]:
        """Return what an evaluation finds, and what it took to get here."""
        cpu, wall = time.process_time(), time.perf_counter()
        env = Monitor(gym.make(self.env_id))
        env.reset(seed=10_000 + self.row["seed"])
        successes = Successes()
        returns, _ = evaluate_policy(self.model, env, self.episodes, callback=successes, return_episode_rewards=True)
        mean = float(torch.tensor(returns).mean())
        calibration = ""
        if isinstance(self.model, PWM):
            env.reset(seed=20_000 + self.row["seed"])
            calibration = f"{self.model.value_calibration(env, n_episodes=self.episodes):.3f}"
        env.close()
        train_returns = [info["r"] for info in (self.model.ep_info_buffer or [])][-10:]
        return self.row | {
            "env_steps": self.num_timesteps,
            "return_mean": round(mean, 2),
            "return_std": round(float(torch.tensor(returns).std(correction=0)), 2),
            "episodes": self.episodes,
            "train_return": round(sum(train_returns) / max(1, len(train_returns)), 2),
            "cpu_seconds": round(cpu - self.cpu_start - self.evaluation_cpu, 1),
            "wall_seconds": round(wall - self.wall_start - self.evaluation_wall, 1),
            "value_calibration": calibration,
            **dict.fromkeys(("success_rate", "success_once_rate"), ""),
            **successes.rates,
        }

    def evaluate(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        row = self.measure()
        self.rows.append(row)
        with self.out.open("a", newline="") as file:
            csv.DictWriter(file, self.fields, extrasaction="ignore").writerow(row)
        print({key: row[key] for key in self.fields if key != "settings"}, flush=True)
        self.evaluation_cpu += time.process_time() - cpu
        self.evaluation_wall += time.perf_counter() - wall


def setting(text: str) -> tuple[str, Any]:
    """Parse name=value, the value in JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    return name, json.loads(value)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add --set to a parser; ``dict(args.set)`` then holds arguments of the constructor."""
    help_text = "constructor argument, may be repeated"
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=JSON", help=help_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="pwm", choices=["pwm", *BASELINES])
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--every", type=int, default=10_000, help="env steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per evaluation")
    add_settings(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="name in the CSV's algorithm column (default: --algo)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    if args.algo == "pwm":
        algorithm: type[BaseAlgorithm] = PWM
        settings: dict[str, Any] = {}
    else:
        algorithm, defaults = BASELINES[args.algo]
        settings = dict(defaults)
    settings |= dict(args.set)
    row = {
        "algorithm": args.name or args.algo,
        "environment": args.env,
        "seed": args.seed,
        "settings": json.dumps(settings),
    }
    start_file(args.out, FIELDS)
    model = algorithm("MlpPolicy", args.env, seed=args.seed, device=args.device, **settings)
    model.learn(args.steps, callback=CurveCallback(args.env, args.every, args.episodes, row, args.out))


if __name__ == "__main__":
    main()
