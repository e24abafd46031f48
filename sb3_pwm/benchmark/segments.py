"""Training in segments: what goes on after a kill is what would have gone on anyway.

A run is cut into segments of environment steps. Between two of them everything is written to files, and the next one
always starts from those files, with new environments and with random numbers that follow from the run's seed and the
segment's index alone. A run that was killed repeats the segment it was in, and ends with the same numbers.
"""

import gc
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pwm.benchmark.plan import find_algorithm
from sb3_pwm.benchmark.results import CurveRow, write_json
from sb3_pwm.benchmark.settings import Settings, default_of, interpret
from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.checks import constructor_parameters
from sb3_pwm.files.atomic import whole_file

CHECK_STEPS = 10_000  # a model that is only made to see whether it can be has a buffer for as many


@dataclass
class Progress:
    """Where a run stands.

    :param segment: index of the segment.
    :param cpu_seconds: CPU time of training until the segment's start.
    :param wall_seconds: wall time of training until then.
    :param rows: evaluations until now.
    """

    segment: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    rows: list[CurveRow] = field(default_factory=list)


def segment_seed(seed: int, segment: int) -> int:
    """Return the seed of a segment; the first one's is the run's own."""
    if segment == 0:
        return seed
    return int(np.random.SeedSequence([seed, segment]).generate_state(1)[0]) // 2  # SB3 adds the environment's index


def make_training_env(spec: RunSpec, settings: Settings) -> VecEnv:
    """Return new training environments without normalisation, which has a state of its own."""

    def make(**kwargs: Any) -> gym.Env[Any, Any]:
        return gym.make(spec.env, **kwargs)  # also ids of the form module:id

    return make_vec_env(make, settings.n_envs, env_kwargs=settings.env_kwargs)


def make_model(spec: RunSpec) -> BaseAlgorithm:
    """Return a model that has not learnt yet."""
    algorithm = find_algorithm(spec.algo)
    settings = interpret(spec.hyperparameters, algorithm)
    env = make_training_env(spec, settings)
    if settings.normalize is not None:
        env = VecNormalize(env, **settings.normalize)
    arguments: dict[str, Any] = dict(settings.arguments)
    if settings.noise is not None:
        arguments["action_noise"] = settings.action_noise(env.action_space)
    parameters = constructor_parameters(algorithm)
    size = arguments.get("buffer_size", default_of(parameters, "buffer_size"))
    if size is not None:
        # No more is ever stored, and every checkpoint holds the whole buffer.
        batch_size = arguments.get("batch_size", default_of(parameters, "batch_size")) or 0
        arguments["buffer_size"] = min(size, max(spec.steps, batch_size))
    return _on_device(spec, algorithm(settings.policy, env, seed=spec.seed, device=spec.device, **arguments))


def _on_device(spec: RunSpec, model: BaseAlgorithm) -> BaseAlgorithm:
    """Return a model that runs where it should; SB3 takes the CPU without a word where there is no GPU.

    :raises RuntimeError: if it does not.
    """
    if spec.device != "auto" and torch.device(spec.device).type != model.device.type:
        raise RuntimeError(f"device {spec.device!r} cannot be used here; the model would run on {model.device}")
    return model


def check_models(plan: Iterable[RunSpec]) -> None:
    """Make the model of every algorithm in every environment once, and throw it away.

    :param plan: the runs; those that differ in the seed only count once.
    :raises ValueError: if an algorithm cannot be made, whatever the reason: which one, in which environment, and why.
    """
    for spec in {(spec.env, spec.name): spec for spec in plan}.values():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are for the run, and end up in its log
                # The machine that starts the runs need have neither the device nor the memory that they run with.
                model = make_model(replace(spec, device="cpu", steps=min(spec.steps, CHECK_STEPS)))
        except Exception as error:
            raise ValueError(f"{spec.name} in {spec.env}: {error}") from error
        if model.env is not None:
            model.env.close()
        del model
        gc.collect()  # models and their parts refer to each other


def load_model(spec: RunSpec, folder: Path, seed: int) -> BaseAlgorithm:
    """Return the model of a checkpoint with its replay buffer, in new environments, and seed everything random."""
    algorithm = find_algorithm(spec.algo)
    env = make_training_env(spec, interpret(spec.hyperparameters, algorithm))
    if (folder / "vec_normalize.pkl").exists():
        env = VecNormalize.load(str(folder / "vec_normalize.pkl"), env)
    model = _on_device(spec, algorithm.load(folder / "model.zip", env=env, device=spec.device))
    if (folder / "replay_buffer.pkl").exists():
        model.load_replay_buffer(folder / "replay_buffer.pkl")  # type: ignore[attr-defined]
    model.set_random_seed(seed)
    return model


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's whole checkpoints, the oldest first."""
    found = folder.glob("checkpoint-*[0-9]")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def save_checkpoint(model: BaseAlgorithm, progress: Progress, folder: Path) -> None:
    """Write all that the next segment starts from, then delete what the last one started from."""
    old = checkpoints(folder)
    temporary = folder / "checkpoint.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        model.save(temporary / "model.zip")
        if getattr(model, "replay_buffer", None) is not None:
            model.save_replay_buffer(temporary / "replay_buffer.pkl")  # type: ignore[attr-defined]
        _save_normalization(model, temporary / "vec_normalize.pkl")
        write_json(temporary / "progress.json", asdict(progress))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
        raise
    os.replace(temporary, folder / f"checkpoint-{progress.segment}")
    for path in old:
        shutil.rmtree(path)


def save_model(model: BaseAlgorithm, folder: Path) -> None:
    """Keep a run's final model, and the statistics of its VecNormalize."""
    with whole_file(folder / "model.zip", ".zip") as part:
        model.save(part)
    _save_normalization(model, folder / "vec_normalize.pkl")


def _save_normalization(model: BaseAlgorithm, path: Path) -> None:
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        with whole_file(path) as part:
            normalization.save(str(part))


def latest_checkpoint(folder: Path) -> tuple[Progress, Path] | None:
    """Return where a run can go on, and the checkpoint's folder; None before the first checkpoint."""
    found = checkpoints(folder)
    if not found:
        return None
    values = json.loads((found[-1] / "progress.json").read_text(encoding="utf-8"))
    return Progress(**values | {"rows": [CurveRow(**row) for row in values["rows"]]}), found[-1]


def delete_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a run."""
    for path in [folder / "checkpoint.tmp", *checkpoints(folder)]:
        shutil.rmtree(path, ignore_errors=True)
