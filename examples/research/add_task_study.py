"""Compare a task that joins a trained world model with one that was there from the start.

    data=$(for task in reach window-open button-press-topdown drawer-close door-open; do
        echo --data mw-$task=mt50/collect/mw-$task/data.pkl; done)
    python examples/research/add_task_study.py $data --new mw-window-open mw-button-press-topdown \\
        --updates 40000 --adding 2000 --folder add_task --out add_task.csv

``together`` is a world model of all tasks, with ``--updates`` updates. ``before`` is one of the old tasks alone, with
the same number of updates for each task; the new ones join it with ``add_task``, ``--adding`` updates each, which gives
``after``. Policies of the new tasks are extracted from ``together`` and ``after``, of the old ones from ``before`` and
``after``, and evaluated in the tasks' environments: each is a row of ``--out``. The same command goes on after an
interruption: models are kept in ``--folder``, rows are not made again.

Tasks are names of :func:`sb3_pwm.suites.mt80` with replay buffers, such as those of ``sb3-pwm suite collect``. One
torch thread.
"""

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pwm import PWM, TaskSet
from sb3_pwm.benchmark.evaluate import evaluate
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets import from_replay_buffer, from_tasks
from sb3_pwm.suites import mt80

FIELDS = ["model", "task", "model_updates", "updates", "episodes", "return_mean", "success_rate", "success_once_rate"]
FIELDS += ["cpu_seconds"]


def trained(data: dict[str, SequenceReplayBuffer], updates: int, seed: int, path: Path) -> PWM:
    """Return a world model of some tasks, the kept one if there is one."""
    suite = mt80()
    tasks = TaskSet([suite[suite.task_id(name)] for name in data])
    if path.exists():
        model = PWM.load(path, device="cpu")
        model.replay_buffer = from_tasks(tasks, data)
        return model
    model = PWM.from_dataset(from_tasks(tasks, data), "MultiTaskPolicy", seed=seed, policy_kwargs={"task_set": tasks})
    model.pretrain(updates)
    model.save(path)
    return model


def monitored(make_env: Callable[[], gym.Env[Any, Any]]) -> Monitor[Any, Any]:
    """Return an environment that counts its episodes."""
    return Monitor(make_env())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="TASK=FILE")
    parser.add_argument("--new", nargs="+", required=True, metavar="TASK", help="those that join later")
    parser.add_argument("--updates", type=int, default=40_000, help="of the world model of all tasks")
    parser.add_argument("--adding", type=int, default=2_000, help="of the world model, for each new task")
    parser.add_argument("--policy-updates", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {name: from_replay_buffer(path) for name, path in (item.split("=", 1) for item in args.data)}
    unknown = sorted(set(args.new) - set(data))
    if unknown:
        parser.error(f"--new {' '.join(unknown)}: no --data")
    old = {name: buffer for name, buffer in data.items() if name not in args.new}
    new = {name: data[name] for name in args.new}
    data = old | new  # in the order in which add_task leaves them
    suite = mt80()
    args.folder.mkdir(parents=True, exist_ok=True)
    fewer = args.updates * len(old) // len(data)
    rows = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        args.out.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    done = {(row["model"], row["task"]) for row in rows}
    for kind, names in (("together", list(new)), ("before", list(old)), ("after", list(data))):
        left = [name for name in names if (kind, name) not in done]
        if not left:
            continue
        path = args.folder / f"{kind}.zip"
        start = time.process_time()
        if kind == "together":
            model = trained(data, args.updates, args.seed, path)
        elif kind == "before":
            model = trained(old, fewer, args.seed, path)
        elif path.exists():
            model = trained(data, 0, args.seed, path)
        else:
            model = trained(old, fewer, args.seed, args.folder / "before.zip")
            for name, buffer in new.items():
                model.add_task(name, buffer, args.adding)
            model.save(path)
        print(kind, round(time.process_time() - start), "CPU seconds", flush=True)
        for name in left:
            start = time.process_time()
            make = suite[suite.task_id(name)].make_env
            policy = model.extract(name, args.policy_updates, env=make(), seed=args.seed)
            seconds = time.process_time() - start
            returns, _, rates = evaluate(policy, DummyVecEnv([partial(monitored, make)]), args.episodes)
            row = {"model": kind, "task": name, "updates": args.policy_updates, "episodes": args.episodes}
            row["model_updates"] = args.updates if kind == "together" else fewer
            row |= {"return_mean": round(float(returns.mean()), 2), "cpu_seconds": round(seconds, 1), **rates}
            print(row, flush=True)
            with args.out.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


if __name__ == "__main__":
    main()
