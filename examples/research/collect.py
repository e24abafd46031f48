"""Train in one environment and keep the replay buffer: data for ``offline_curve.py`` and ``multitask_offline.py``.

    python examples/research/collect.py --env sb3_pwm.suites:mt80/cheetah-run-v0 --steps 50000 --out data/cheetah-run
    python examples/research/collect.py --algo sac --env HalfCheetah-v5 --steps 50000 --npz --out data/sac_cheetah

The first writes ``data/cheetah-run.pkl``, the replay buffer, and ``data/cheetah-run.csv``, a row with the evaluation of
the final policy. ``--every`` evaluates in between, too; the best evaluation is printed. ``--npz`` also writes the steps
in the D4RL layout, which ``d3rlpy_curve.py`` reads. Settings are those of ``learning_curve.py``, unless ``--set
name=value`` (JSON values) overrides a constructor argument. One torch thread, CPU.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_curve import BASELINES, FIELDS, CurveCallback, add_settings, start_file
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pwm import PWM
from sb3_pwm.datasets import from_replay_buffer


def steps_of(model: OffPolicyAlgorithm) -> dict[str, np.ndarray]:
    """Return the steps of a model of one environment in the D4RL layout, with actions as the environment gets them."""
    assert model.replay_buffer is not None
    buffer: Any = from_replay_buffer(model.replay_buffer)
    columns = {name: getattr(buffer, name)[:, 0] for name in ("observations", "next_observations", "rewards")}
    columns["actions"] = model.policy.unscale_action(buffer.actions[:, 0])
    columns["timeouts"] = buffer.timeouts[:, 0] == 1
    columns["terminals"] = (buffer.dones[:, 0] == 1) & ~columns["timeouts"]
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="pwm", choices=["pwm", *BASELINES])
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--every", type=int, help="env steps between evaluations (default: only at the end)")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per evaluation")
    parser.add_argument("--npz", action="store_true", help="also write the steps in the D4RL layout")
    add_settings(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="NAME", help="the files, without .pkl, .csv and .npz"
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    algorithm, defaults = BASELINES.get(args.algo, (PWM, {}))
    settings: dict[str, Any] = defaults | dict(args.set)
    row = {"algorithm": args.algo, "environment": args.env, "seed": args.seed, "settings": json.dumps(settings)}
    files = {suffix: args.out.with_name(args.out.name + suffix) for suffix in (".csv", ".pkl", ".npz")}
    start_file(files[".csv"], FIELDS)
    # The buffer is saved with all its rows, also empty ones.
    settings = {"buffer_size": args.steps} | settings
    model: Any = algorithm("MlpPolicy", args.env, seed=args.seed, device="cpu", **settings)
    never = sys.maxsize  # while it learns
    curve = CurveCallback(args.env, args.every or never, args.episodes, row, files[".csv"])
    model.learn(args.steps, callback=curve)
    if not curve.rows or curve.rows[-1]["env_steps"] < model.num_timesteps:
        curve.evaluate()
    best = max(curve.rows, key=lambda found: found["return_mean"])
    print(f"best evaluation: {best['return_mean']} after {best['env_steps']} steps")
    model.save_replay_buffer(files[".pkl"])
    if args.npz:
        np.savez_compressed(files[".npz"], **steps_of(model))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
