"""Measure how far ahead the world model predicts on episodes that it has not learnt from.

The last tenth of a data set is held out, the world model learns from the rest, and the errors on that tenth are
appended to a CSV file after every fifth of the updates:

    python examples/research/model_fit.py --data sac_hopper.npz --env Hopper-v5 --name residual --out model_fit.csv
    python examples/research/model_fit.py --data sac_hopper.npz --env Hopper-v5 --name plain \\
        --policy-kwargs '{"residual_dynamics": false}' --out model_fit.csv

``--data`` is a NumPy file in the D4RL layout, see :func:`sb3_pwm.datasets.from_npz`. One torch thread, CPU.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from sb3_pwm import PWM
from sb3_pwm.datasets import from_arrays

HORIZONS = (1, 4, 16)
FIELDS = ("name", "environment", "seed", "updates", "steps_ahead", "latent", "reward", "termination")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", required=True, help="environment that gives the spaces")
    parser.add_argument("--transitions", type=int, help="use only the first ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=5_000)
    parser.add_argument("--policy-kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--name", required=True, help="name in the CSV")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    env = gym.make(args.env)
    arrays = {name: values[: args.transitions] for name, values in np.load(args.data).items()}
    split = len(arrays["rewards"]) * 9 // 10
    train, held_out = (
        from_arrays({name: values[part] for name, values in arrays.items()}, env.observation_space, env.action_space)
        for part in (slice(split), slice(split, None))
    )
    model = PWM.from_dataset(train, seed=args.seed, device="cpu", policy_kwargs=args.policy_kwargs)
    if not args.out.exists():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(",".join(FIELDS) + "\n")
    for _ in range(5):
        model.pretrain(args.updates // 5)
        errors = model.model_errors(held_out, max(HORIZONS))
        for ahead in HORIZONS:
            row: dict[str, Any] = {name: f"{values[ahead - 1]:.4f}" for name, values in errors.items()}
            row |= {"name": args.name, "environment": args.env, "seed": args.seed}
            row |= {"updates": model.n_model_updates, "steps_ahead": ahead}
            with args.out.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
