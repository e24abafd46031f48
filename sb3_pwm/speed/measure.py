"""Measure how close each part of PWM comes to what the machine's matrix products allow.

    python -m sb3_pwm.speed --json speed.json

For each shape and each phase: the matrix products that it needs are counted, the same products are timed alone in the
same run (the *floor*), and *efficiency* is the floor over the measured time. *operations* are calls of eager kernels,
views among them. *of peak* compares with one large square product instead. *reference ratio* is the time of the same
update in :mod:`sb3_pwm.speed.reference`, a plain eager version in float32, over the measured time. On a GPU, where
updates are CUDA graphs, *eager ratio* is the time of the same update without one over the measured time. Times are the
lowest of several rounds.

``--extraction 10000`` adds what a policy takes that is extracted from the paper's 48M multi-task world model.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pwm.compute.hardware import processor
from sb3_pwm.compute.precision import PRECISIONS, Precision, arithmetic, supports
from sb3_pwm.datasets import from_tasks
from sb3_pwm.files.atomic import write_text
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.presets import paper_multi_task, paper_single_task
from sb3_pwm.pwm import PWM
from sb3_pwm.speed.matmuls import counts_of, floor_seconds, flops_of, peak_rate, seconds_of_each
from sb3_pwm.speed.reference import ReferenceLearner

N_TRANSITIONS = 20_000
EPISODE_STEPS = 1_000
TASKS = TaskSet([Task("first", None, 39, 6), Task("second", None, 24, 4)])


class Shape(NamedTuple):
    """Sizes of a task, and settings of PWM."""

    observation_dim: int
    action_dim: int
    settings: dict[str, Any]


def multi_task(precision: Precision = "float32") -> dict[str, Any]:
    """Return the settings of the paper's 48M multi-task model, for a single task: without its task embedding."""
    settings = paper_multi_task("48M", TASKS)
    own = {"task_set", "task_embedding_dim"}
    policy = {name: value for name, value in settings["policy_kwargs"].items() if name not in own}
    return settings | {"policy_kwargs": policy, "precision": precision}


SHAPES = {
    "default": Shape(17, 6, {}),
    "default-compiled": Shape(17, 6, {"torch_compile": True}),
    "paper-64": Shape(17, 6, paper_single_task | {"batch_size": 64}),
    "paper-64-compiled": Shape(17, 6, paper_single_task | {"batch_size": 64, "torch_compile": True}),
    "paper-512": Shape(17, 6, paper_single_task | {"batch_size": 512}),
    "humanoid": Shape(348, 17, {}),
    "snu-humanoid": Shape(53, 152, {}),
    "multi-task-48M": Shape(39, 6, multi_task()),
    "multi-task-48M-tf32": Shape(39, 6, multi_task("tf32")),
    "multi-task-48M-bfloat16": Shape(39, 6, multi_task("bfloat16")),
}


class RandomEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observations and rewards that mean nothing, at no cost."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
        self.action_space = spaces.Box(-1, 1, (action_dim,), np.float32)
        self.steps = 0

    def _observe(self) -> np.ndarray:
        values: np.ndarray = self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)
        return values

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode of ``EPISODE_STEPS`` steps."""
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return noise."""
        self.steps += 1
        return self._observe(), float(self.np_random.standard_normal()), False, self.steps >= EPISODE_STEPS, {}


def make_model(shape: Shape, device: str) -> PWM:
    """Build a model whose replay buffer is full of noise."""
    env = RandomEnv(shape.observation_dim, shape.action_dim)
    settings = shape.settings | {"buffer_size": N_TRANSITIONS, "learning_starts": 0, "pretrain_steps": 0}
    model = PWM("MlpPolicy", env, seed=0, device=device, **settings)
    buffer = model.sequences
    for array in (buffer.observations, buffer.next_observations, buffer.rewards):
        array[:] = np.random.standard_normal(array.shape)
    buffer.actions[:] = np.random.uniform(-1, 1, buffer.actions.shape)
    buffer.dones[EPISODE_STEPS - 1 :: EPISODE_STEPS] = buffer.timeouts[EPISODE_STEPS - 1 :: EPISODE_STEPS] = 1
    buffer.full = True
    model.train(1, model.batch_size)
    return model


class Phase(NamedTuple):
    """A part of what a model does, and the same in plain eager code where there is such a thing."""

    work: Callable[[], object]
    reference: Callable[[], object] | None = None


def phases_of(model: PWM) -> dict[str, Phase]:
    """Return the parts of an update, and acting on one observation."""
    samples, transitions = model._sample(model.batch_size), model._critic_samples()
    latents = model._learner.update_model(samples)
    observation = np.zeros(model.observation_space.shape or (), np.float32)
    reference = ReferenceLearner(model)
    of_reference = reference.update_model(samples)

    def update() -> None:
        latents = model._learner.update_model(model._sample(model.batch_size))
        model._learner.update_policy(samples, model._critic_samples(), latents)

    return {
        "sampling": Phase(lambda: (model._sample(model.batch_size), model._critic_samples())),
        "model update": Phase(lambda: model._learner.update_model(samples), lambda: reference.update_model(samples)),
        "policy update": Phase(
            lambda: model._learner.update_policy(samples, transitions, latents),
            lambda: reference.update_policy(samples, transitions, of_reference),
        ),
        "model and policy update": Phase(update),
        "acting": Phase(lambda: model.predict(observation)),
    }


def measure_shape(name: str, device: str) -> list[dict[str, Any]]:
    """Return one row for each phase of a shape."""
    torch_device = torch.device(device)
    shape = SHAPES[name]
    precision = shape.settings.get("precision", "float32")
    phases = phases_of(make_model(shape, device))
    on_gpu = torch_device.type == "cuda"
    # Products within a CUDA graph cannot be counted, so on a GPU a model without one does the same.
    uncaptured = shape._replace(settings=shape.settings | {"torch_compile": False})
    eager_phases = phases_of(make_model(uncaptured, device)) if on_gpu else phases
    # For products alone: where they are in bfloat16, so are their factors.
    alone: Precision = "tf32" if precision == "tf32" else "float32"
    with arithmetic(torch_device, alone):
        peak = peak_rate(torch_device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    rows = []
    for name_of_phase, phase in phases.items():
        eager = eager_phases[name_of_phase].work
        works = {"measured": phase.work}
        if phase.reference:
            works["reference"] = phase.reference
        if on_gpu:
            works["eager"] = eager
        counts = counts_of(eager)
        times = seconds_of_each(list(works.values()), torch_device)
        seconds = dict(zip(works, times, strict=True))
        flops = flops_of(counts.products)
        with arithmetic(torch_device, alone):
            floor = floor_seconds(counts.products, torch_device)
        measured = seconds["measured"]
        rows.append(
            {
                "shape": name,
                "phase": name_of_phase,
                "milliseconds": 1e3 * measured,
                "operations": counts.operations,
                "gflop": flops / 1e9,
                "floor_milliseconds": 1e3 * floor,
                "efficiency": floor / measured,
                "of_peak": flops / measured / peak,
                "reference_ratio": seconds["reference"] / measured if "reference" in seconds else None,
                "eager_ratio": seconds["eager"] / measured if "eager" in seconds else None,
            }
        )
    return rows


def measure_extraction(device: str, updates: int, precision: Precision, size: str = "48M") -> dict[str, Any]:
    """Return the seconds that extracting a policy from one of the paper's multi-task world models takes.

    The data are noise and the world model knows nothing, which takes the same time as if it were otherwise.
    """
    settings = paper_multi_task(size, TASKS)
    shapes = {task.name: Shape(task.observation_size, task.action_size, {}) for task in TASKS}
    data = {name: make_model(shape, "cpu").sequences for name, shape in shapes.items()}
    model = PWM.from_dataset(from_tasks(TASKS, data), "MultiTaskPolicy", device=device, precision=precision, **settings)
    model.pretrain(1)
    stopwatch = Stopwatch(torch.device(device))
    model.extract(TASKS[0].name, updates, callback=stopwatch)
    return {"size": size, "updates": updates, "precision": precision, "seconds": stopwatch.seconds}


class Stopwatch(BaseCallback):
    """Measure the seconds between the start and the end of training, what is under way on the device included."""

    seconds: float

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _on_training_start(self) -> None:
        self.start = self._now()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.seconds = self._now() - self.start


def measure_acting(device: str) -> dict[str, float]:
    """Return PWM's and SAC's milliseconds of ``predict`` for one observation, and their ratio."""
    shape = SHAPES["default"]
    env = RandomEnv(shape.observation_dim, shape.action_dim)
    observation = np.zeros(shape.observation_dim, np.float32)
    models = {"pwm": PWM("MlpPolicy", env, device=device), "sac": SAC("MlpPolicy", env, device=device)}
    works = [lambda model=model: model.predict(observation) for model in models.values()]
    seconds = seconds_of_each(works, torch.device(device))
    times = {name: 1e3 * value for name, value in zip(models, seconds, strict=True)}
    return times | {"ratio": times["pwm"] / times["sac"]}


def measure_learning(device: str, steps: int) -> dict[str, float]:
    """Return CPU milliseconds per step of ``learn`` with default settings, of PWM and of SAC, and updates per second.

    The environment costs next to nothing, so that what is compared is the algorithms.
    """
    shape = SHAPES["default"]
    env = RandomEnv(shape.observation_dim, shape.action_dim)
    result: dict[str, float] = {}
    starts = 200
    algorithms = {
        "pwm": PWM("MlpPolicy", env, learning_starts=starts, pretrain_steps=0, seed=0, device=device),
        "sac": SAC("MlpPolicy", env, learning_starts=starts, seed=0, device=device),
    }
    for name, model in algorithms.items():
        model.learn(starts + 40)
        cpu, wall, updates = time.process_time(), time.perf_counter(), model._n_updates
        model.learn(steps, reset_num_timesteps=False)
        wall = time.perf_counter() - wall
        result[f"{name}_cpu_milliseconds_per_step"] = 1e3 * (time.process_time() - cpu) / steps
        result[f"{name}_steps_per_second"] = steps / wall
        result[f"{name}_updates_per_second"] = (model._n_updates - updates) / wall
    result["cpu_ratio"] = result["pwm_cpu_milliseconds_per_step"] / result["sac_cpu_milliseconds_per_step"]
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [
            f"{value:.3g}" if isinstance(value, float) else str("" if value is None else value)
            for value in row.values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2_000, help="environment steps of learn(); 0 leaves it out")
    parser.add_argument("--extraction", type=int, default=0, metavar="N", help="policy updates of an extraction")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = {
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "torch": torch.__version__,
        "peak_gflop_per_second": peak_rate(device) / 1e9,
    }
    print(table([machine]), flush=True)
    result: dict[str, Any] = {"machine": machine, "phases": []}

    def report(rows: list[dict[str, Any]]) -> None:
        """Print rows, and write what there is so far."""
        print("\n" + table(rows), flush=True)
        if options.json:
            write_text(options.json, json.dumps(result, indent=1) + "\n")

    for name in options.shapes:
        rows = measure_shape(name, options.device)
        result["phases"] += rows
        report(rows)
    result["acting"] = measure_acting(options.device)
    report([result["acting"]])
    if options.steps:
        result["learning"] = measure_learning(options.device, options.steps)
        report([result["learning"]])
    if options.extraction:
        result["extraction"] = []
        for precision in [precision for precision in PRECISIONS if supports(device, precision)]:
            result["extraction"].append(measure_extraction(options.device, options.extraction, precision))
            report(result["extraction"][-1:])
