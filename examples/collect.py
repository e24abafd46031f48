"""Train PWM in one environment and keep its replay buffer: data for ``offline_curve.py`` and ``multitask_offline.py``.

    python examples/collect.py --env sb3_pwm.suites:mt80/cheetah-run-v0 --steps 50000 --seed 0 --out data/cheetah-run

This writes ``data/cheetah-run.pkl``, the replay buffer, and ``data/cheetah-run.csv``, one row with the evaluation of
the final policy. Settings are the defaults, unless ``--set name=value`` (JSON values) overrides a constructor argument.
One torch thread, CPU.
"""

import argparse
import json
from pathlib import Path

import torch
from learning_curve import FIELDS, CurveCallback, add_settings, start_file

from sb3_pwm import PWM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--episodes", type=int, default=10, help="episodes of the evaluation")
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="the two files, without .pkl and .csv")
    args = parser.parse_args()

    torch.set_num_threads(1)
    settings = dict(args.set)
    row = {"algorithm": "pwm", "environment": args.env, "seed": args.seed, "settings": json.dumps(settings)}
    files = {suffix: args.out.with_name(args.out.name + suffix) for suffix in (".csv", ".pkl")}
    start_file(files[".csv"], FIELDS)
    # The buffer is saved with all its rows, also empty ones.
    settings = {"buffer_size": args.steps} | settings
    model = PWM("MlpPolicy", args.env, seed=args.seed, device="cpu", **settings)
    never = args.steps + 1  # while it learns
    curve = CurveCallback(args.env, never, args.episodes, row, files[".csv"])
    model.learn(args.steps, callback=curve)
    curve.evaluate()
    model.save_replay_buffer(files[".pkl"])


if __name__ == "__main__":
    main()
