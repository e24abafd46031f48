"""Fit one world model to data of several tasks, then extract a policy for each: a CSV file per run.

    python examples/multitask_offline.py --task HalfCheetah-v5=sac_cheetah.npz --task Hopper-v5=sac_hopper.npz \\
        --seed 0 --out multitask.csv

A task is a Gymnasium environment, which gives the spaces and evaluates, and a NumPy file in the D4RL layout, see
:func:`sb3_pwm.datasets.from_npz`. Evaluations use deterministic actions and are not counted in ``cpu_seconds``; those
of the world model are shared out evenly. Compare with ``offline_curve.py``, which gives each task a model of its own.
One torch thread, CPU. Under ``torchrun`` the processes share the work on the world model, each with its own part of
every batch; the first one then extracts the policies:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 examples/multitask_offline.py --task ...
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from learning_curve import start_file
from offline_curve import FIELDS, OfflineCurveCallback
from torch import distributed

from sb3_pwm import PWM, TaskSet
from sb3_pwm.datasets import from_npz, from_tasks


class SharedModelCallback(OfflineCurveCallback):
    """Add a task's part of the time that the shared world model took."""

    def __init__(self, shared_seconds: float, *args: Any) -> None:
        super().__init__(*args)
        self.shared_seconds = shared_seconds

    def measure(self) -> dict[str, Any]:
        row = super().measure()
        return row | {"cpu_seconds": round(row["cpu_seconds"] + self.shared_seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", required=True, metavar="ENV=FILE")
    parser.add_argument("--name", default="pwm-multitask", help="name in the CSV's algorithm column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-updates", type=int, default=20_000, help="world-model updates")
    parser.add_argument("--updates", type=int, default=10_000, help="policy updates of each task")
    parser.add_argument("--every", type=int, default=2_000, help="policy updates between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per evaluation")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="constructor argument")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    parallel = "WORLD_SIZE" in os.environ  # torchrun says so
    if parallel:
        distributed.init_process_group("gloo")
    files = {env: Path(file) for env, file in (item.split("=", 1) for item in args.task)}
    envs = {env: gym.make(env) for env in files}
    task_set = TaskSet.from_envs({env: env for env in files})
    datasets = {
        name: from_npz(files[name], env.observation_space, env.action_space)  # type: ignore[arg-type]
        for name, env in envs.items()
    }
    settings = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    policy_kwargs = settings.get("policy_kwargs", {}) | {"task_set": task_set}
    model = PWM.from_dataset(
        from_tasks(task_set, datasets),
        "MultiTaskPolicy",
        seed=args.seed,
        device="cpu",
        **(settings | {"policy_kwargs": policy_kwargs}),
    )
    cpu = time.process_time()
    model.pretrain(args.model_updates)
    shared_seconds = (time.process_time() - cpu) / len(envs)
    if parallel:
        is_first = distributed.get_rank() == 0
        distributed.destroy_process_group()
        if not is_first:
            return
    start_file(args.out, FIELDS)
    for name, env in envs.items():
        row = {
            "algorithm": args.name,
            "environment": name,
            "data": files[name].stem,
            "transitions": datasets[name].size(),
            "seed": args.seed,
            "online": False,
            "settings": json.dumps(settings),
        }
        curve = SharedModelCallback(shared_seconds, name, args.every, args.episodes, row, args.out)
        model.extract(name, args.updates, env=env, callback=curve)


if __name__ == "__main__":
    main()
