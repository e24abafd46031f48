"""From a suite of tasks to a policy for each: collect, train, extract, evaluate; ``sb3-pwm suite``.

A unit of a stage, a task or the world model of all, runs in a separate process:

    python -m sb3_pwm.suites.stages < job.json
"""

import importlib
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pwm import suites
from sb3_pwm.benchmark.evaluate import evaluate
from sb3_pwm.benchmark.results import IN_USE_CODE, InUseError, locked, write_json
from sb3_pwm.benchmark.segments import segment_seed
from sb3_pwm.benchmark.worker import LOCK_SECONDS, end_with_input
from sb3_pwm.datasets import from_arrays, from_replay_buffer, from_tasks
from sb3_pwm.files.replay_buffers import save_replay_buffer
from sb3_pwm.multitask.data import fill, new_buffer
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.pwm import PWM
from sb3_pwm.suites.experts import has_expert, record_expert
from sb3_pwm.suites.records import begin, finish, finished_files

WORLD_MODEL = "world model"  # the unit that is no task
DATA, MODEL, EVALUATION = "data.pkl", "model.zip", "evaluation.json"
CHECKPOINT_EVERY = 2_000  # updates of the world model


def find_suite(name: str) -> TaskSet:
    """Return a suite.

    :param name: one of :mod:`sb3_pwm.suites`, or an import path ``module:function`` of a function that returns one.
    :raises ValueError: if there is none.
    """
    module, _, function = name.rpartition(":")
    if not module and name not in suites.__all__:
        raise ValueError(f"there is no suite {name!r}; allowed: {', '.join(suites.__all__)}, or module:function")
    found = getattr(importlib.import_module(module) if module else suites, function, None)
    task_set = found() if callable(found) else None
    if not isinstance(task_set, TaskSet):
        raise ValueError(f"{name} must be a function that returns a TaskSet")
    return task_set


def folder_of(out: Path, stage: str, task: str) -> Path:
    """Return the folder of a unit."""
    return out / stage if task == WORLD_MODEL else out / stage / task


def inputs_of(out: Path, suite: str, stage: str, task: str, now: str) -> dict[str, str]:
    """Return the checksums of the files that a unit follows from, by their places.

    :param out: folder of all stages.
    :param suite: name of the suite.
    :param stage: name of the stage.
    :param task: name of the task, or ``WORLD_MODEL``.
    :param now: the revision.
    :raises ValueError: if a stage before has not finished, or has left what is not usable here.
    """
    before = {
        "collect": [],
        "train": [("collect", name) for name in find_suite(suite).names],
        "extract": [("train", WORLD_MODEL), ("collect", task)],
        "evaluate": [("extract", task)],
    }[stage]
    files: dict[str, str] = {}
    for unit in before:
        files |= finished_files(out, folder_of(out, *unit), suite, now)
    return files


def own_env(task: Task) -> gym.Env[Any, Any]:
    """Return a task's environment with a vector of observations."""
    env = task.make_env()
    return env if isinstance(env.observation_space, spaces.Box) else gym.wrappers.FlattenObservation(env)


def collect(out: Path, task_set: TaskSet, name: str, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Store steps of a task: of its scripted expert, or of PWM while it learns the task alone.

    :return: how good they are.
    """
    task, folder = task_set[task_set.task_id(name)], folder_of(out, "collect", name)
    env = own_env(task)
    steps, seed = origin["steps"], origin["seed"]
    if has_expert(task):
        data, rates = record_expert(task, -(-steps // task.episode_length), seed)
        save_replay_buffer(from_arrays(data, env.observation_space, env.action_space), folder / DATA)
        return {"success_by_noise": {str(noise): pair for noise, pair in rates.items()}}
    model = PWM("MlpPolicy", env, buffer_size=steps, seed=seed, device=device, **origin["settings"])
    model.learn(steps)
    save_replay_buffer(model.sequences, folder / DATA)
    returns = [info["r"] for info in model.ep_info_buffer or []]
    return {"train_return": float(np.mean(returns)) if returns else None}


class Checkpoints(BaseCallback):
    """Save the model after so many updates, and seed what follows by their number.

    So a run that goes on from a checkpoint has the random numbers of one that was not interrupted.

    :param folder: where they are saved.
    :param every: updates between them.
    :param seed: of the run.
    """

    def __init__(self, folder: Path, every: int, seed: int) -> None:
        super().__init__()
        self.folder, self.every, self.seed = folder, every, seed

    def found(self) -> dict[int, Path]:
        """Return the checkpoints by their updates."""
        names = {path: re.fullmatch(r"checkpoint-(\d+)\.zip", path.name) for path in self.folder.iterdir()}
        return {int(name[1]): path for path, name in names.items() if name}

    def begin_segment(self, updates: int) -> None:
        """Seed what comes after a number of updates."""
        set_random_seed(segment_seed(self.seed, updates // self.every))

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            before = self.found()
            self.model.save(self.folder / f"checkpoint-{self.num_timesteps}.zip")
            for path in before.values():
                path.unlink()
            self.begin_segment(self.num_timesteps)
        return True


def train(out: Path, task_set: TaskSet, name: str, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Train one world model on the data of all tasks, from the last checkpoint if there is one."""
    folder = folder_of(out, "train", name)
    data = {task: from_replay_buffer(folder_of(out, "collect", task) / DATA) for task in task_set.names}
    settings = origin["settings"] | {"seed": origin["seed"], "device": device}
    settings["policy_kwargs"] = settings.get("policy_kwargs", {}) | {"task_set": task_set}
    model = PWM.from_dataset(from_tasks(task_set, data), "MultiTaskPolicy", **settings)
    checkpoints = Checkpoints(folder, origin["checkpoint_every"], origin["seed"])
    found = checkpoints.found()
    done = max(found, default=0)
    begin(folder, origin)  # checkpoints follow from it too
    if done:
        model.set_parameters(str(found[done]), device=device)
        model.n_model_updates = done
    checkpoints.begin_segment(done)
    model.pretrain(origin["updates"] - done, callback=checkpoints, reset_num_timesteps=False)
    model.save(folder / MODEL)
    for path in checkpoints.found().values():
        path.unlink()
    return {}


def extract(out: Path, task_set: TaskSet, name: str, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Extract a task's policy from the world model."""
    data = from_replay_buffer(folder_of(out, "collect", name) / DATA)
    own = new_buffer(task_set, data.size(), 1)
    fill(own, slice(0, 1), data, task_set.task_id(name))
    model = PWM.load(folder_of(out, "train", WORLD_MODEL) / MODEL, device=device)
    own.device = model.device
    model.replay_buffer = own
    env = own_env(task_set[task_set.task_id(name)])
    policy = model.extract(name, origin["updates"], env=env, seed=origin["seed"])
    policy.save(folder_of(out, "extract", name) / MODEL)
    return {}


def evaluate_policy(out: Path, task_set: TaskSet, name: str, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Evaluate a task's policy in its environment; success is what it is at the last step, and at any."""
    policy = PWM.load(folder_of(out, "extract", name) / MODEL, device=device)
    task = task_set[task_set.task_id(name)]
    env = DummyVecEnv([lambda: Monitor(own_env(task))])
    returns, lengths, successes = evaluate(policy, env, origin["episodes"])
    found = {"return_mean": float(returns.mean()), "return_std": float(returns.std()), **successes}
    write_json(folder_of(out, "evaluate", name) / EVALUATION, found | {"episode_length_mean": float(lengths.mean())})
    return {}


Work = Callable[[Path, TaskSet, str, dict[str, Any], str], dict[str, Any]]
STAGES: dict[str, tuple[Work, str]] = {
    "collect": (collect, DATA),
    "train": (train, MODEL),
    "extract": (extract, MODEL),
    "evaluate": (evaluate_policy, EVALUATION),
}


def carry_out(job: dict[str, Any]) -> None:
    """Carry out a unit, and record what its files follow from.

    :raises InUseError: if another process does so.
    """
    folder, unit = Path(job["folder"]), job["specification"]
    work, file = STAGES[unit["stage"]]
    torch.set_num_threads(unit["threads"])
    with locked(folder, LOCK_SECONDS):
        task_set = find_suite(job["origin"]["suite"])
        found = work(Path(job["out"]), task_set, unit["task"], job["origin"], unit["device"])
        finish(folder, job["origin"], [file], found)


def main() -> None:
    """Carry out the job on the standard input; when that ends, so does the process."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    try:
        carry_out(job)
    except InUseError as error:
        print(error, file=sys.stderr)
        sys.exit(IN_USE_CODE)


if __name__ == "__main__":
    main()
