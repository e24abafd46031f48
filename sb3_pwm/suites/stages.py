"""From a suite of tasks to a policy for each, and what to compare it with; ``sb3-pwm suite``.

A unit of a stage, such as a task or the world model of all, runs in a separate process:

    python -m sb3_pwm.suites.stages < job.json
"""

import importlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pwm import suites
from sb3_pwm.benchmark.evaluate import evaluate
from sb3_pwm.benchmark.jobs import PROGRESS
from sb3_pwm.benchmark.progress import MODEL_FIGURES, POLICY_FIGURES, Note, NoteSteps
from sb3_pwm.benchmark.results import IN_USE_CODE, InUseError, locked, write_json
from sb3_pwm.benchmark.segments import segment_seed
from sb3_pwm.benchmark.worker import LOCK_SECONDS, end_with_input
from sb3_pwm.datasets import from_arrays, from_replay_buffer, from_tasks
from sb3_pwm.files.replay_buffers import save_replay_buffer
from sb3_pwm.multitask.data import fill, new_buffer
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.planning.planner import PlanningPWM
from sb3_pwm.pwm import PWM
from sb3_pwm.suites.experts import has_expert, record_expert
from sb3_pwm.suites.records import begin, finish, is_finished, read_record

WORLD_MODEL = "world model"  # the only unit that is not a task
DATA, MODEL, EVALUATION = "data.pkl", "model.zip", "evaluation.json"
CHECKPOINT_EVERY = 2_000  # updates of the world model
EXTRACTED, PLANNER, SINGLE = "extracted", "planner", "single"
# What extracted policies are compared with: their settings in the same world model; the single task has another model.
BASELINES: dict[str, dict[str, Any]] = {
    "prior": {"critic": "q", "horizon": 0},  # TD-MPC2's policy prior: follows the critics, and imagines nothing
    SINGLE: {},
    # Recorded actions count so much that imagined returns have no say; without Q critics none is left out.
    "cloning": {"critic": "v", "horizon": 1, "critic_updates": 1, "ent_coef": 0.0, "bc_coef": 1e5},
}
METHODS = (EXTRACTED, "prior", PLANNER, SINGLE, "cloning")
OF_TASK_SETS = ("task_set", "task_embedding_dim")  # arguments that policies of single tasks do not have
TIMED_ACTIONS = 100


class Unit(NamedTuple):
    """A part of a stage that is done, or made again, as a whole.

    :param stage: name of the stage.
    :param task: name of the task, or ``WORLD_MODEL``.
    :param method: how the policy came about, in the stages that know several.
    """

    stage: str
    task: str
    method: str | None = None

    def folder(self, out: Path) -> Path:
        """Return where its files are in the folder of all stages."""
        within = [part for part in (self.method, self.task) if part not in (None, WORLD_MODEL)]
        return Path(out, self.stage, *map(str, within))


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


def units_of(stage: str, tasks: Sequence[str], methods: Sequence[str]) -> list[Unit]:
    """Return the units of a stage.

    :param stage: its name.
    :param tasks: names of the tasks.
    :param methods: those that are asked for, in the stages that know several.
    """
    if stage == "train":
        return [Unit(stage, WORLD_MODEL)]
    if stage in ("baselines", "evaluate"):
        return [Unit(stage, task, method) for method in methods for task in tasks]
    return [Unit(stage, task) for task in tasks]


def units_before(unit: Unit, tasks: Sequence[str]) -> list[Unit]:
    """Return the units that a unit follows from."""
    own, model = Unit("collect", unit.task), Unit("train", WORLD_MODEL)
    if unit.stage == "evaluate":
        return [policy_of(unit)]
    return {
        "collect": [],
        "train": [Unit("collect", task) for task in tasks],
        "extract": [model, own],
        "baselines": [model, own, Unit("extract", unit.task)],
    }[unit.stage]


def policy_of(unit: Unit) -> Unit:
    """Return the unit that made the policy that a unit evaluates."""
    if unit.method == EXTRACTED:
        return Unit("extract", unit.task)
    return Unit("baselines", unit.task, "prior" if unit.method == PLANNER else unit.method)


def task_of(task_set: TaskSet, unit: Unit) -> Task:
    """Return the task of a unit."""
    found: Task = task_set[task_set.task_id(unit.task)]
    return found


def own_env(task: Task) -> gym.Env[Any, Any]:
    """Return a task's environment with a vector of observations."""
    env = task.make_env()
    return env if isinstance(env.observation_space, spaces.Box) else gym.wrappers.FlattenObservation(env)


def collect(out: Path, task_set: TaskSet, unit: Unit, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Store steps of a task: of its scripted expert, or of PWM while it learns the task alone.

    :return: how good they are.
    """
    task, folder = task_of(task_set, unit), unit.folder(out)
    env = own_env(task)
    steps, seed = origin["steps"], origin["seed"]
    if has_expert(task):
        episodes = -(-steps // task.episode_length)
        note = Note(folder, episodes, "episodes")
        data, rates = record_expert(task, episodes, seed, note)
        note(episodes, {"expert's success": rates[0.0][0]})
        save_replay_buffer(from_arrays(data, env.observation_space, env.action_space), folder / DATA)
        return {"success_by_noise": {str(noise): pair for noise, pair in rates.items()}}
    model = PWM("MlpPolicy", env, buffer_size=steps, seed=seed, device=device, **origin["settings"])
    note = Note(folder, steps, "steps")
    model.learn(steps, callback=NoteSteps(note, {"rollout/ep_rew_mean": "return"}))
    save_replay_buffer(model.sequences, folder / DATA)
    returns = [info["r"] for info in model.ep_info_buffer or []]
    found = float(np.mean(returns)) if returns else None
    note(steps, {} if found is None else {"return": found})
    return {"train_return": found}


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


def train(out: Path, task_set: TaskSet, unit: Unit, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Train one world model on the data of all tasks, from the last checkpoint if there is one."""
    folder = unit.folder(out)
    data = {task: from_replay_buffer(Unit("collect", task).folder(out) / DATA) for task in task_set.names}
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
    notes = NoteSteps(Note(folder, origin["updates"], "updates"), MODEL_FIGURES)
    model.pretrain(origin["updates"] - done, callback=[checkpoints, notes], reset_num_timesteps=False)
    model.save(folder / MODEL)
    for path in checkpoints.found().values():
        path.unlink()
    return {}


def extract(out: Path, task_set: TaskSet, unit: Unit, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Extract a task's policy from the world model."""
    policy = extracted(out, task_set, unit, device, origin["updates"], seed=origin["seed"])
    policy.save(unit.folder(out) / MODEL)
    return {}


def extracted(out: Path, task_set: TaskSet, unit: Unit, device: str, updates: int, **settings: Any) -> PWM:
    """Return a policy for a task that learns in the world model of all.

    :param settings: PWM's arguments that differ from the world model's.
    """
    data = from_replay_buffer(Unit("collect", unit.task).folder(out) / DATA)
    own = new_buffer(task_set, data.size(), 1)
    fill(own, slice(0, 1), data, task_set.task_id(unit.task))
    model = PWM.load(Unit("train", WORLD_MODEL).folder(out) / MODEL, device=device)
    own.device = model.device
    model.replay_buffer = own
    notes = NoteSteps(Note(unit.folder(out), updates, "updates"), POLICY_FIGURES)
    return model.extract(unit.task, updates, env=own_env(task_of(task_set, unit)), callback=notes, **settings)


def baseline(out: Path, task_set: TaskSet, unit: Unit, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Learn a policy to compare the extracted one with, from the same data, with as many updates."""
    updates, seed = origin_of(out, Unit("extract", unit.task))["updates"], origin["seed"]
    if unit.method == SINGLE:
        trained = origin_of(out, Unit("train", WORLD_MODEL))
        settings = trained["settings"] | {"seed": seed, "device": device}
        given = settings.get("policy_kwargs", {})
        settings["policy_kwargs"] = {name: value for name, value in given.items() if name not in OF_TASK_SETS}
        policy = PWM.from_dataset(from_replay_buffer(Unit("collect", unit.task).folder(out) / DATA), **settings)
        n_model_updates = trained["updates"] // len(task_set)
        note = Note(unit.folder(out), n_model_updates + updates, "updates")
        policy.pretrain(n_model_updates, callback=NoteSteps(note, MODEL_FIGURES))
        notes = NoteSteps(note, POLICY_FIGURES, before=n_model_updates)
        policy.learn_offline(updates, pretrain_steps=0, callback=notes)
    else:
        policy = extracted(out, task_set, unit, device, updates, seed=seed, **BASELINES[str(unit.method)])
    policy.save(unit.folder(out) / MODEL)
    return {}


def origin_of(out: Path, unit: Unit) -> dict[str, Any]:
    """Return what the files of a finished unit follow from."""
    record = read_record(unit.folder(out))
    return record["origin"] if record else {}


def evaluate_policy(out: Path, task_set: TaskSet, unit: Unit, origin: dict[str, Any], device: str) -> dict[str, Any]:
    """Evaluate a task's policy in its environment; success is what it is at the last step, and at any."""
    kind = PlanningPWM if unit.method == PLANNER else PWM
    policy = kind.load(policy_of(unit).folder(out) / MODEL, device=device)
    env = DummyVecEnv([lambda: Monitor(own_env(task_of(task_set, unit)))])
    note = Note(unit.folder(out), origin["episodes"], "episodes")
    returns, lengths, successes = evaluate(policy, env, origin["episodes"], note)
    shown = {"success": successes["success_rate"]} if successes else {}
    note(len(returns), {"return": float(returns.mean())} | shown)
    found = {"return_mean": float(returns.mean()), "return_std": float(returns.std()), **successes}
    found |= {"ms_per_action": milliseconds_per_action(policy, env), "episode_length_mean": float(lengths.mean())}
    write_json(unit.folder(out) / EVALUATION, found)
    return {}


def milliseconds_per_action(policy: PWM, env: VecEnv) -> float:
    """Return the median wall time that a policy takes for an action, at an episode's start."""
    observations: Any = env.reset()
    state, seconds = None, []
    for _ in range(TIMED_ACTIONS):
        start = time.perf_counter()
        _, state = policy.predict(observations, state, deterministic=True)
        seconds.append(time.perf_counter() - start)
    return 1_000 * float(np.median(seconds))


Work = Callable[[Path, TaskSet, Unit, dict[str, Any], str], dict[str, Any]]
STAGES: dict[str, tuple[Work, str]] = {
    "collect": (collect, DATA),
    "train": (train, MODEL),
    "extract": (extract, MODEL),
    "baselines": (baseline, MODEL),
    "evaluate": (evaluate_policy, EVALUATION),
}


def carry_out(job: dict[str, Any]) -> None:
    """Carry out a unit, and record what its files follow from.

    :raises InUseError: if another process does so.
    """
    folder, specification = Path(job["folder"]), job["specification"]
    unit = Unit(*(specification[name] for name in Unit._fields))
    work, file = STAGES[unit.stage]
    torch.set_num_threads(specification["threads"])
    with locked(folder, LOCK_SECONDS):
        if is_finished(folder, job["origin"]):  # by the same command elsewhere, since this one has looked
            return
        (folder / PROGRESS).unlink(missing_ok=True)  # of before an interruption
        task_set = find_suite(job["origin"]["suite"])
        found = work(Path(job["out"]), task_set, unit, job["origin"], specification["device"])
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
