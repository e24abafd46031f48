"""Fit one world model to data of several tasks, then extract a policy for each: a CSV file per run.

    python examples/research/multitask_offline.py --task HalfCheetah-v5=sac_cheetah.npz \\
        --task Hopper-v5=sac_hopper.npz --seed 0 --out multitask.csv

A task is a Gymnasium environment, which gives the spaces and evaluates, and a file of data, see ``offline_curve.py``.
Evaluations use deterministic actions and are not counted in ``cpu_seconds``; those of the world model are shared out
evenly. Compare with ``offline_curve.py``, which gives each task a model of its own. One torch thread.

``--prior`` extracts a second policy of each task from the same world model for comparison, as TD-MPC2 learns its policy
prior: its actor maximises the critics at replayed states and never imagines a step. All else is the same, also the
number of states in an update: the first ones of the windows, where imagined rollouts start.

``--model FOLDER`` takes a world model and data that ``--save FOLDER`` has kept, for instance from a machine with a GPU
(``--device cuda``); its seconds do not count then.

``--jobs 2`` extracts two policies at a time, each in a process of its own; the results are the same.

Under ``torchrun`` the processes share the work on the world model, each with its own part of every batch; the first one
then extracts the policies:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 examples/research/multitask_offline.py --task ...
"""

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from learning_curve import add_settings, start_file
from offline_curve import FIELDS, OfflineCurveCallback, read_data
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributed

from sb3_pwm import PWM, TaskSet
from sb3_pwm.datasets import from_tasks


class SharedModelCallback(OfflineCurveCallback):
    """Add a task's part of the time that the shared world model took."""

    def __init__(self, shared_seconds: float, *args: Any) -> None:
        super().__init__(*args)
        self.shared_seconds = shared_seconds

    def measure(self) -> dict[str, Any]:
        row = super().measure()
        return row | {"cpu_seconds": round(row["cpu_seconds"] + self.shared_seconds, 1)}


def extract_prior(
    model: PWM,
    name: str,
    updates: int,
    *,
    env: gym.Env[Any, Any] | None = None,
    callback: BaseCallback | None = None,
    **kwargs: Any,
) -> PWM:
    """Let the actor maximise the mean of the critics at the windows' states, without imagination."""
    return model.extract(name, updates, env=env, callback=callback, **kwargs | {"horizon": 0})


def extract_task(
    folder: Path, curve: SharedModelCallback, prior: bool, updates: int, settings: dict[str, Any], out: Path | None
) -> None:
    """Extract one policy from ``model.zip`` and ``data.pkl`` in a folder, evaluate and save it."""
    torch.set_num_threads(1)
    model = PWM.load(folder / "model", device=settings["device"])
    model.load_replay_buffer(folder / "data")
    extract = extract_prior if prior else PWM.extract
    policy = extract(model, curve.env_id, updates, env=gym.make(curve.env_id), callback=curve, **settings)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        policy.save(out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", required=True, metavar="ENV=FILE")
    parser.add_argument("--name", default="pwm-multitask", help="name in the CSV's algorithm column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-updates", type=int, help="world-model updates; 10,000 for each task if not given")
    parser.add_argument("--updates", type=int, default=10_000, help="policy updates of each task")
    parser.add_argument("--every", type=int, default=2_000, help="policy updates between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per evaluation")
    add_settings(parser)
    parser.add_argument("--prior", action="store_true", help="also policies without imagination: <name>-prior")
    parser.add_argument("--jobs", type=int, default=1, help="policies at a time")
    parser.add_argument("--device", default="cpu", help="where all of it learns")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="take model.zip and data.pkl from there")
    help_text = "keep model.zip, data.pkl and <name>/<number of task>.zip"
    parser.add_argument("--save", type=Path, metavar="FOLDER", help=help_text)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    parallel = "WORLD_SIZE" in os.environ  # torchrun says so
    if parallel:
        distributed.init_process_group("gloo")
    files = {env: Path(file) for env, file in (item.split("=", 1) for item in args.task)}
    envs = {env: gym.make(env) for env in files}
    task_set = TaskSet.from_envs({env: env for env in files})
    datasets = {name: read_data(files[name], env) for name, env in envs.items()}
    settings: dict[str, Any] = dict(args.set)
    if args.prior and settings.get("critic") == "v":
        raise SystemExit('--prior needs Q critics, not critic="v"')
    policy_kwargs: dict[str, Any] = settings.get("policy_kwargs", {}) | {"task_set": task_set}
    if args.model:
        policy: Any = PWM.load(args.model / "model", device="cpu").policy
        known = list(policy.task_set.names)
        if known != list(files):
            raise SystemExit(f"the model in {args.model} has the tasks {', '.join(known)}, in this order")
        shared_seconds = 0.0
    else:
        model = PWM.from_dataset(
            from_tasks(task_set, datasets),
            "MultiTaskPolicy",
            seed=args.seed,
            device=args.device,
            **(settings | {"policy_kwargs": policy_kwargs}),
        )
        cpu = time.process_time()
        model.pretrain(model.pretrain_steps if args.model_updates is None else args.model_updates)
        shared_seconds = (time.process_time() - cpu) / len(envs)
    if parallel:
        is_first = distributed.get_rank() == 0
        distributed.destroy_process_group()
        if not is_first:
            return
    start_file(args.out, FIELDS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or args.save or Path(temporary)
        if not args.model:
            folder.mkdir(parents=True, exist_ok=True)
            model.save(folder / "model")
            model.save_replay_buffer(folder / "data")
        own = {name: value for name, value in settings.items() if name != "policy_kwargs"}
        own |= {"seed": args.seed, "device": args.device}
        jobs = []
        for (number, name), prior in itertools.product(enumerate(envs), [False, True] if args.prior else [False]):
            method = args.name + "-prior" * prior
            row = {
                "algorithm": method,
                "environment": name,
                "data": files[name].stem,
                "transitions": datasets[name].size(),
                "seed": args.seed,
                "online": False,
                "settings": json.dumps(settings),
            }
            curve = SharedModelCallback(shared_seconds, name, args.every, args.episodes, row, args.out)
            out = args.save / method / str(number) if args.save else None
            jobs.append((folder, curve, prior, args.updates, own, out))
        if args.jobs == 1:
            for job in jobs:
                extract_task(*job)
        else:
            with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
                for future in [pool.submit(extract_task, *job) for job in jobs]:
                    future.result()


if __name__ == "__main__":
    main()
