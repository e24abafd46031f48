"""One run of a benchmark, in a separate process: train, evaluate, write down.

    python -m sb3_pwm.benchmark.worker < job.json

The job's JSON is the first line of the standard input; when the input ends, so does the process: whoever started it has
gone, and a second process may take over its run.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm.benchmark.evaluate import evaluate, make_evaluation_env, random_return
from sb3_pwm.benchmark.plan import find_algorithm
from sb3_pwm.benchmark.results import (
    FAILED,
    FINISHED,
    FORMAT,
    IN_USE_CODE,
    RUNNING,
    UPDATES,
    CurveRow,
    InUseError,
    Run,
    is_finished,
    locked,
    read_run,
    write_curve,
    write_json,
)
from sb3_pwm.benchmark.segments import (
    Progress,
    delete_checkpoints,
    latest_checkpoint,
    load_model,
    make_model,
    save_checkpoint,
    save_model,
    segment_seed,
)
from sb3_pwm.benchmark.settings import interpret
from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.checks import ATTRIBUTES, constructor_parameters
from sb3_pwm.compute.hardware import processor
from sb3_pwm.compute.live import LastLog

PACKAGES = (
    *("sb3-pwm", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "mujoco", "numpy"),
    *("dm-control", "metaworld"),  # the simulators of sb3_pwm.suites
)
ORIGIN = ("command", "versions", "git_revision", "processor", "gpu")  # of what a process did of a run
PROGRESS_SECONDS = 2.0  # between two notes for the progress table
LOGGED = ("train/", "rollout/ep_len_mean")  # beginnings of the names that are kept beside the evaluations
LOCK_SECONDS = 5.0  # until when the process of a command that was killed has surely ended


class SegmentEnd(Exception):  # noqa: N818 - no error
    """Training has reached the end of its segment."""


class SegmentCallback(BaseCallback):
    """Evaluate every so many steps, and end the segment before the first rollout after ``end``.

    There everything that was collected is stored and learnt from; a callback that returns False would drop a step.
    """

    def __init__(self, spec: RunSpec, progress: Progress, end: int, env: VecEnv, folder: Path) -> None:
        super().__init__()
        self.spec, self.progress, self.end, self.env, self.folder = spec, progress, end, env, folder
        self.start_cpu, self.start_wall = time.process_time(), time.perf_counter()
        self.noted = -np.inf
        self.log = LastLog(LOGGED)

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.log)
        if not self.progress.rows:
            self.add_row()  # of the untrained policy, with which all others are compared

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.end:
            raise SegmentEnd

    def _on_step(self) -> bool:
        last = self.progress.rows[-1].env_steps if self.progress.rows else 0
        due = min(last // self.spec.eval_every * self.spec.eval_every + self.spec.eval_every, self.spec.steps)
        if last < self.spec.steps and self.num_timesteps >= due:
            self.add_row()
        if time.perf_counter() - self.noted > PROGRESS_SECONDS:
            self.noted = time.perf_counter()
            write_json(self.folder / "progress.json", {"env_steps": self.num_timesteps})
        return True

    def seconds(self) -> tuple[float, float]:
        """Return CPU and wall seconds of training since the run's start."""
        cpu, wall = time.process_time() - self.start_cpu, time.perf_counter() - self.start_wall
        return self.progress.cpu_seconds + cpu, self.progress.wall_seconds + wall

    def add_row(self) -> None:
        """Evaluate, and take the time for it off the training time."""
        cpu, wall = time.process_time(), time.perf_counter()
        cpu_seconds, wall_seconds = self.seconds()
        returns, lengths, successes = evaluate(self.model, self.env, self.spec.eval_episodes)
        training = [info["r"] for info in self.model.ep_info_buffer or []]
        self.progress.rows.append(
            CurveRow(
                env_steps=self.num_timesteps,
                wall_seconds=round(wall_seconds, 3),
                cpu_seconds=round(cpu_seconds, 3),
                return_mean=float(returns.mean()),
                return_std=float(returns.std()),
                episode_length_mean=float(lengths.mean()),
                episodes=len(returns),
                train_return=float(np.mean(training)) if training else float("nan"),
                logged=self.log.values
                | {UPDATES: float(self.model._n_updates)}
                | {f"eval/{name}": rate for name, rate in successes.items()},
            )
        )
        write_curve(self.folder, self.progress.rows)
        self.start_cpu += time.process_time() - cpu
        self.start_wall += time.perf_counter() - wall


def train(spec: RunSpec, folder: Path, record: dict[str, Any]) -> None:
    """Train from where the run stands to its end.

    :param spec: the run.
    :param folder: its folder.
    :param record: what ``run.json`` holds; the model's hyperparameters are added.
    """
    settings = interpret(spec.hyperparameters, find_algorithm(spec.algo))
    while True:
        found = latest_checkpoint(folder)
        progress = found[0] if found else Progress()
        model = load_model(spec, found[1], segment_seed(spec.seed, progress.segment)) if found else make_model(spec)
        record["model"] = used_hyperparameters(model)
        record["gpu"] = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
        write_json(folder / "run.json", record)
        write_curve(folder, progress.rows)
        end = (progress.segment + 1) * spec.checkpoint_every
        env = make_evaluation_env(spec.env, settings.env_kwargs, model.get_vec_normalize_env())
        callback = SegmentCallback(spec, progress, end, env, folder)
        try:
            model.learn(spec.steps - model.num_timesteps, callback=callback, reset_num_timesteps=found is None)
        except SegmentEnd:
            progress.cpu_seconds, progress.wall_seconds = callback.seconds()
            progress.segment += 1
            save_checkpoint(model, progress, folder)
        else:
            return save_model(model, folder)
        finally:
            for used in (env, model.env):
                if used is not None:
                    used.close()


def used_hyperparameters(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the values of the constructor's arguments that a model really has, as JSON values."""
    arguments: dict[str, Any] = {}
    for name in constructor_parameters(type(model)):
        attribute = ATTRIBUTES.get(name, name)
        if name not in ("env", "policy", "_init_setup_model") and hasattr(model, attribute):
            arguments[name] = as_json(getattr(model, attribute))
    arguments["policy"] = as_json(type(model.policy))
    arguments["n_envs"] = model.n_envs
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        names = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
        arguments["normalize"] = {name: as_json(getattr(normalization, name)) for name in names}
    return arguments


def as_json(value: Any) -> Any:
    """Return a value as JSON values; what has no such form becomes its description."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return str(value)


def packages_of(env_id: str, env_kwargs: dict[str, Any]) -> list[str]:
    """Return the packages, if any, that an environment's class comes from."""
    with contextlib.closing(gym.make(env_id, **env_kwargs)) as env:
        module = type(env.unwrapped).__module__.partition(".")[0]
    return metadata.packages_distributions().get(module, [])


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the revision of the checkout that this package runs from; None if it is installed elsewhere."""
    folder = Path(__file__).parent
    try:
        run = ["git", "-C", str(folder)]
        subprocess.run([*run, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        describe = [*run, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def run_job(spec: RunSpec, folder: Path, command: str) -> bool:
    """Carry out one run and record how it ended; nothing is done if it has finished.

    :param spec: the run.
    :param folder: its folder.
    :param command: command line that asked for it.
    :return: whether it finished; if not, its traceback is recorded.
    :raises InUseError: if another process carries it out.
    :raises ValueError: if the folder holds another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, LOCK_SECONDS):
        found = read_run(folder) if (folder / "run.json").exists() else None
        return is_finished(spec, found, folder) or _carry_out(spec, folder, command, found)


def _carry_out(spec: RunSpec, folder: Path, command: str, found: Run | None) -> bool:
    record: dict[str, Any] = {
        "format": FORMAT,
        "state": RUNNING,
        "specification": spec.to_dict(),
        "command": command,
        "versions": versions(),
        "git_revision": git_revision(),
        "processor": processor(),
        "gpu": None,
        "random_return": None,
        "traceback": None,
    }
    if found is not None and latest_checkpoint(folder) is not None:
        first = {name: found.record.get(name) for name in ORIGIN}
        record["earlier"] = [*found.record.get("earlier", []), first]
    write_json(folder / "run.json", record)
    try:
        torch.set_num_threads(spec.threads)
        settings = interpret(spec.hyperparameters, find_algorithm(spec.algo))
        record["versions"] |= versions(packages_of(spec.env, settings.env_kwargs))
        record["random_return"] = random_return(spec.env, settings.env_kwargs, spec.eval_episodes)
        train(spec, folder, record)
    except (Exception, SystemExit):  # some environments exit where others raise
        write_json(folder / "run.json", record | {"state": FAILED, "traceback": traceback.format_exc()})
        return False
    write_json(folder / "run.json", record | {"state": FINISHED})
    delete_checkpoints(folder)
    (folder / "progress.json").unlink(missing_ok=True)
    return True


def end_with_input() -> None:
    """End this process when its standard input ends."""
    while os.read(0, 1):  # not sys.stdin, whose lock a waiting thread would keep when the run has ended
        pass
    os._exit(1)


def main() -> None:
    """Carry out the job on the standard input."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    try:
        finished = run_job(RunSpec(**job["specification"]), Path(job["folder"]), job["command"])
    except InUseError as error:
        print(error, file=sys.stderr)
        sys.exit(IN_USE_CODE)
    sys.exit(0 if finished else 1)


if __name__ == "__main__":
    main()
