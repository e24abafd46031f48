"""Extract a policy for each task from a model of many tasks, each in a separate process.

The same command again leaves out the tasks whose policies are there; a policy of another model, other data, updates or
seed is an error. The replay buffer is a pickle, which runs code: use only files that you trust.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from sb3_pwm.benchmark.engines import LocalEngine, RayEngine, import_paths
from sb3_pwm.benchmark.jobs import Units, run_jobs, why
from sb3_pwm.benchmark.plan import registered_id
from sb3_pwm.benchmark.progress import POLICY_FIGURES, Note, NoteSteps
from sb3_pwm.benchmark.results import write_json
from sb3_pwm.benchmark.worker import end_with_input
from sb3_pwm.checks import check_integer
from sb3_pwm.multitask.extraction import EXTRACTION_UPDATES
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.multitask.tasks import check_folder_names
from sb3_pwm.pwm import PWM

ALL = "all"
ORIGIN = ("model_sha256", "data_sha256", "updates", "seed", "env")  # what a policy follows from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``sb3-pwm extract``."""
    parser.add_argument("model", type=Path, metavar="MODEL.zip", help='saved model with "MultiTaskPolicy"')
    parser.add_argument("--data", type=Path, required=True, help="what save_replay_buffer wrote of it")
    parser.add_argument("--tasks", nargs="+", default=[ALL], metavar="NAME", help=f"names of tasks, or {ALL!r}")
    parser.add_argument(
        "--env",
        nargs="+",
        default=[],
        metavar="NAME=ID",
        help="environments of tasks, whose spaces the policies get; without one actions are in [-1, 1]",
    )
    parser.add_argument("--out", type=Path, default=Path("policies"), help="folder: <task>/model.zip")
    parser.add_argument("--updates", type=int, default=EXTRACTION_UPDATES, help="policy updates of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at a time; with --engine ray, Ray decides")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each task")
    parser.add_argument("--device", default="cpu", help="torch device")


def chosen_tasks(model: PWM, names: Sequence[str]) -> list[str]:
    """Return the names of the tasks that are asked for, in the order of the set.

    :raises TypeError: if the model has one task only.
    :raises ValueError: if there is no such task.
    """
    if not isinstance(model.policy, MultiTaskPolicy):
        raise TypeError(f'the model must have "MultiTaskPolicy", not {type(model.policy).__name__}')
    task_set = model.policy.task_set
    if list(names) == [ALL]:
        return list(task_set.names)
    for name in names:
        task_set.task_id(name)
    return [name for name in task_set.names if name in names]


def env_ids(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the ids of environments by task.

    :param texts: ``NAME=ID`` each.
    :param names: names of the tasks that are asked for.
    :raises ValueError: if a text has no ``=``, its task is not asked for, or named twice, or there is no such
        environment.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, env) in zip(texts, pairs, strict=True):
        if not env or name not in names:
            raise ValueError(f"env: {text!r} is not NAME=ID with one of the tasks {', '.join(names)}")
    named = [name for name, _, _ in pairs]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if repeated:
        raise ValueError(f"env: more than one environment for the task {repeated[0]!r}")
    for _, _, env in pairs:
        registered_id(env)
    return {name: env for name, _, env in pairs}


def sha256(path: Path) -> str:
    """Return enough of a file's SHA-256 to tell it from others."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_extracted(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether a task's policy is there.

    :param folder: the task's folder.
    :param settings: what is asked for.
    :raises ValueError: if the policy that is there follows from something else.
    """
    if not (folder / "model.zip").exists():
        return False
    record = folder / "extraction.json"
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    pairs = [(name, found.get(name), settings[name]) for name in ORIGIN]
    differences = "; ".join(f"{name} is {there!r} there, {here!r} here" for name, there, here in pairs if there != here)
    if differences:
        raise ValueError(f"{folder} holds a policy of other settings: {differences}; choose another --out")
    return True


def run(options: argparse.Namespace) -> int:
    """Carry out ``sb3-pwm extract``.

    :return: exit code: 1 if a task failed.
    :raises ValueError: if an option is wrong, or the output folder holds policies of other settings.
    :raises TypeError: if the model has one task only.
    """
    for name, low in (("jobs", 1), ("threads", 1), ("updates", 0), ("seed", 0)):
        check_integer(name, getattr(options, name), low)
    for name in ("model", "data"):
        if not getattr(options, name).is_file():
            raise ValueError(f"{name}: there is no file {getattr(options, name)}")
    names = chosen_tasks(PWM.load(options.model, device="cpu"), options.tasks)
    check_folder_names(names)
    settings = {name: getattr(options, name) for name in ("updates", "seed", "threads", "device")}
    settings |= {f"{name}_sha256": sha256(getattr(options, name)) for name in ("model", "data")}
    envs = env_ids(options.env, names)
    specifications = {name: settings | {"task": name, "env": envs.get(name)} for name in names}
    waiting = [name for name in names if not is_extracted(options.out / name, specifications[name])]
    print(f"{len(names)} tasks, {len(names) - len(waiting)} of them extracted before", flush=True)
    jobs = [
        {
            "module": "sb3_pwm.cli.extract",
            "specification": specifications[name],
            "folder": str((options.out / name).resolve()),
            "paths": import_paths(),
            "model": str(options.model.resolve()),
            "data": str(options.data.resolve()),
        }
        for name in waiting
    ]
    place = RayEngine() if options.engine == "ray" and jobs else LocalEngine(options.jobs)
    folders = {str((options.out / name).resolve()): [name] for name in names}
    board = Units(["task"], folders, {str(job["folder"]) for job in jobs})
    failed = run_jobs(jobs, place, board) if jobs else []
    for job, state in failed:
        print(f"{job['specification']['task']}: {why(job, state)}", file=sys.stderr)
    return int(bool(failed))


def extract_task(job: dict[str, Any]) -> None:
    """Extract one policy and save it, with what it took beside it."""
    settings, folder = job["specification"], Path(job["folder"])
    torch.set_num_threads(settings["threads"])
    model = PWM.load(job["model"], device=settings["device"])
    model.load_replay_buffer(job["data"])
    cpu, wall = time.process_time(), time.perf_counter()
    env = None if settings["env"] is None else gym.make(settings["env"])
    notes = NoteSteps(Note(folder, settings["updates"], "updates"), POLICY_FIGURES)
    policy = model.extract(settings["task"], settings["updates"], env=env, seed=settings["seed"], callback=notes)
    seconds = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    write_json(folder / "extraction.json", settings | seconds)
    policy.save(folder / "model.zip")


def main() -> None:
    """Carry out the job on the standard input; when that ends, so does the process."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    extract_task(job)


if __name__ == "__main__":
    main()
