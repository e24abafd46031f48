"""Evaluate policies that have learnt nothing, the first thing to compare returns with.

    python examples/research/untrained.py --out docs/results/untrained/untrained.csv

A fresh ``PWM("MlpPolicy", env, seed=seed)`` acts deterministically, from the start states of ``sb3-pwm benchmark``'s
evaluations. ``examples/research/results_table.py`` reads the file.
"""

import argparse
import csv
from pathlib import Path

import torch

from sb3_pwm import PWM
from sb3_pwm.benchmark.evaluate import evaluate, make_evaluation_env
from sb3_pwm.benchmark.worker import git_revision

ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")


def evaluated(env_id: str, seed: int, episodes: int) -> dict[str, object]:
    """Return a row for one environment and seed."""
    model = PWM("MlpPolicy", env_id, seed=seed, buffer_size=1_000, device="cpu")
    env = make_evaluation_env(env_id, {})
    returns, lengths, _ = evaluate(model, env, episodes)
    env.close()
    return {
        "algorithm": "untrained pwm",  # what a report calls the policies of runs before their first step
        "environment": env_id,
        "seed": seed,
        "env_steps": 0,
        "return_mean": returns.mean(),
        "return_std": returns.std(),
        "episode_length_mean": lengths.mean(),
        "episodes": episodes,
        "device": "cpu",
        "git_revision": git_revision(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    rows = [evaluated(env, seed, args.episodes) for env in args.env for seed in args.seeds]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
