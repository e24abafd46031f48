"""Measure how a policy fares while it learns from a data set alone: one CSV file per run.

    python examples/offline_curve.py --data sac_hopper.npz --env Hopper-v5 --name pwm --seed 0 --out offline.csv

``--data`` is a NumPy file in the D4RL layout, see :func:`sb3_pwm.datasets.from_npz`. The environment is used for its
spaces and for the evaluations (deterministic actions), which are not counted in ``cpu_seconds``. One torch thread, CPU.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM
from sb3_pwm.datasets import from_arrays

FIELDS = (
    "algorithm",
    "environment",
    "data",
    "transitions",
    "seed",
    "updates",
    "return_mean",
    "return_std",
    "episodes",
    "value_calibration",
    "imagined_return",
    "cpu_seconds",
    "settings",
)


class CurveCallback(BaseCallback):
    """Evaluate every ``every`` updates and append a row to the CSV file."""

    def __init__(self, env_id: str, every: int, episodes: int, row: dict[str, Any], out: Path) -> None:
        super().__init__()
        self.env_id, self.every, self.episodes, self.row, self.out = env_id, every, episodes, row, out
        self.evaluation_cpu = 0.0

    def _on_training_start(self) -> None:
        self.cpu_start = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.evaluate()
        return True

    def evaluate(self) -> None:
        assert isinstance(self.model, PWM)
        cpu = time.process_time()
        env = Monitor(gym.make(self.env_id))
        env.reset(seed=10_000 + self.row["seed"])
        returns, _ = evaluate_policy(self.model, env, n_eval_episodes=self.episodes, return_episode_rewards=True)
        env.reset(seed=20_000 + self.row["seed"])
        calibration = self.model.value_calibration(env, n_episodes=self.episodes)
        env.close()
        row = self.row | {
            "updates": self.num_timesteps,
            "return_mean": round(float(np.mean(returns)), 2),
            "return_std": round(float(np.std(returns)), 2),
            "episodes": self.episodes,
            "value_calibration": round(calibration, 3),
            "imagined_return": round(self.model._learner.pop_metrics().get("imagined_return", np.nan), 3),
            "cpu_seconds": round(cpu - self.cpu_start - self.evaluation_cpu, 1),
        }
        with self.out.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        print({key: row[key] for key in FIELDS if key != "settings"}, flush=True)
        self.evaluation_cpu += time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", required=True, help="environment that gives the spaces and evaluates")
    parser.add_argument("--transitions", type=int, help="use only the first ones")
    parser.add_argument("--name", default="pwm", help="name in the CSV's algorithm column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain", type=int, default=10_000, help="world-model updates")
    parser.add_argument("--updates", type=int, default=20_000, help="policy updates")
    parser.add_argument("--every", type=int, default=2_000, help="policy updates between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per evaluation")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="constructor argument")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    env = gym.make(args.env)
    arrays = {name: values[: args.transitions] for name, values in np.load(args.data).items()}
    data = from_arrays(arrays, env.observation_space, env.action_space)
    settings = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    model = PWM.from_dataset(data, seed=args.seed, device="cpu", **settings)
    row = {
        "algorithm": args.name,
        "environment": args.env,
        "data": args.data.stem,
        "transitions": len(arrays["rewards"]),
        "seed": args.seed,
        "settings": json.dumps(settings | {"pretrain": args.pretrain}, sort_keys=True),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.DictWriter(file, FIELDS).writeheader()
    callback = CurveCallback(args.env, args.every, args.episodes, row, args.out)
    model.learn_offline(args.updates, pretrain_steps=args.pretrain, callback=callback)


if __name__ == "__main__":
    main()
