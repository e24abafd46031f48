r"""The figures of docs/does-the-model-help.md: gradients by horizon, the planner beside the policy, and the plots.

    RESULTS=docs/results/model-help
    python examples/research/does_the_model_help.py gradients --env Hopper-v5 --model pwm.zip \
      --out $RESULTS/gradients/Hopper-v5.csv
    python examples/research/does_the_model_help.py planner --env Hopper-v5 --models */model.zip \
      --out $RESULTS/planner/Hopper-v5.csv
    python examples/research/does_the_model_help.py curves runs --out $RESULTS/curves.csv
    python examples/research/does_the_model_help.py plot $RESULTS docs/images

``gradients`` compares estimates of one gradient: that of the discounted return of H steps, by an offset added to what
the actor puts out before tanh, one number per action dimension. Few enough that the truth can be had by differences of
simulated returns, smoothed by the offset's size. ``--model`` is a model that ``PWM.save`` wrote. ``curves`` puts what
``sb3-pwm benchmark`` wrote into one file.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pwm import PWM, Planner
from sb3_pwm.imagination import imagine
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.simulator.dynamics import TrueDynamics
from sb3_pwm.simulator.steps import MujocoSteps

HORIZONS = (1, 2, 4, 8, 16, 32)
OFFSET = 0.1  # of the smoothed truth, before tanh
FEWEST = 64  # rollouts in a group
TIMED_ACTIONS = 50
NAMES = {"learnt": "PWM, learnt model", "true": "PWM, true dynamics", "shac": "SHAC, true dynamics"}
COLORS = {"learnt": "#0072B2", "true": "#D55E00", "shac": "#009E73"}
ESTIMATES: dict[str, Any] = {
    "learnt model": {"color": COLORS["learnt"]},
    "learnt model, through observations": {"color": COLORS["learnt"], "linestyle": "--"},
    "true dynamics": {"color": COLORS["true"]},
    "true dynamics, through observations": {"color": COLORS["true"], "linestyle": "--"},
}
FIELDS = ("env", "horizon", "estimate", "rows", "n", "cosine", "norm_ratio", "noise", "cpu_seconds")


class OffsetActor(torch.nn.Module):
    """A policy with fixed noise and an offset for each row.

    :param policy: of PWM.
    :param noise: (H, N, A) standard normal numbers.
    :param offsets: (N, A) offsets.
    :param observed: number of entries of a latent that are the observation; None if latents are the world model's.
    """

    def __init__(self, policy: Any, noise: torch.Tensor, offsets: torch.Tensor, observed: int | None) -> None:
        super().__init__()
        self.policy, self.noise, self.offsets, self.observed = policy, noise, offsets, observed
        self.action_dim = offsets.shape[-1]
        self.step = 0

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, A) actions, and zeros."""
        if self.observed is not None:
            latents = self.policy.world_model.encode(latents[:, : self.observed])
        mean, log_std = self.policy.actor.distribution(latents)
        actions = torch.tanh(mean + self.offsets + log_std.exp() * self.noise[self.step])
        self.step += 1
        return actions, actions.sum(-1)


def returns_of(
    dynamics: Any, actor: OffsetActor, start: torch.Tensor, through: bool, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (N,) discounted returns of rollouts, and their (H + 1, N, Z) latents."""
    rollout = imagine(dynamics, actor, start, len(actor.noise), through_observations=through)  # type: ignore[arg-type]
    weights = continuation_weights(rollout.continuations)
    returns = imagined_returns(rollout.rewards, weights, torch.zeros(len(start)), gamma)
    return returns, rollout.latents.detach()


def visited_observations(model: PWM, env_id: str, count: int, seed: int, every: int = 20) -> np.ndarray:
    """Return (count, D) observations of the stochastic policy's episodes, one in ``every`` steps."""
    env = gym.make(env_id)
    observations: list[np.ndarray] = []
    observation, _ = env.reset(seed=seed)
    while len(observations) < every * count:
        observations.append(observation)
        observation, _, terminated, truncated, _ = env.step(model.predict(observation)[0])
        if terminated or truncated:
            observation, _ = env.reset()
    return np.array(observations[::every][:count])


def contacts_change(steps: MujocoSteps, states: np.ndarray) -> np.ndarray:
    """Return for (H + 1, N, nq + nv) states whether a contact begins or ends, (N,)."""
    data, counts = steps._env.data, np.zeros(states.shape[:2])
    for place in np.ndindex(counts.shape):
        data.qpos[:], data.qvel[:] = states[place][: steps.nq], states[place][steps.nq :]
        steps._mujoco.mj_fwdPosition(steps._model, data)
        counts[place] = data.ncon
    changes: np.ndarray = (counts != counts[0]).any(0)
    return changes


def gradients(options: argparse.Namespace) -> None:
    """Write one row for each horizon, estimate and group of rollouts."""
    torch.manual_seed(options.seed)
    model = PWM.load(options.model, device="cpu")
    policy, gamma = model.policy, model.gamma
    policy.set_training_mode(False)
    steps = MujocoSteps(gym.make(options.env).spec.to_json())
    true = TrueDynamics(torch.nn.Identity(), steps.observation_dim, steps, type(policy.reward_scale)())
    observations = visited_observations(model, options.env, options.states, options.seed)
    observed = torch.as_tensor(observations, dtype=torch.float32).repeat_interleave(options.noises, 0)
    n, n_actions = len(observed), steps.nu
    starts = {True: true.encode(observed), False: policy.world_model.encode(observed).detach()}
    scale = float(policy.reward_scale.of(None))
    rows = []
    for horizon in HORIZONS:
        noise = torch.randn(horizon, n, n_actions)

        def returns(offsets: torch.Tensor, simulated: bool, through: bool = False, noise: torch.Tensor = noise) -> Any:
            actor = OffsetActor(policy, noise, offsets, steps.observation_dim if simulated else None)
            return returns_of(true if simulated else policy.world_model, actor, starts[simulated], through, gamma)

        started = time.process_time()
        truth = np.empty((n, n_actions))
        with torch.no_grad():
            _, latents = returns(torch.zeros(n, n_actions), True)
            for k in range(n_actions):
                step = torch.zeros(n, n_actions)
                step[:, k] = OFFSET
                truth[:, k] = (returns(step, True)[0] - returns(-step, True)[0]).double() / (2 * OFFSET)
        seconds = time.process_time() - started
        changing = contacts_change(steps, latents[..., steps.observation_dim : -2].double().numpy())
        groups = {"all": np.full(n, True), "contacts change": changing, "same contacts": ~changing}

        def add(
            name: str,
            each: np.ndarray,
            seconds: float,
            horizon: int = horizon,
            groups: Any = groups,
            truth: Any = truth,
        ) -> None:
            for group, chosen in groups.items():
                if (count := int(chosen.sum())) >= FEWEST:
                    found = compared(each[chosen], truth[chosen].mean(0))
                    rows.append([options.env, horizon, name, group, count, *found, seconds])
                    print(*map(_short, rows[-1]), sep=",", flush=True)

        add("smoothed truth", truth, seconds)
        for simulated in (False, True):
            for through in (False, True):
                started = time.process_time()
                offsets = torch.zeros(n, n_actions, requires_grad=True)
                returns(offsets, simulated, through)[0].sum().backward()
                assert offsets.grad is not None
                each = offsets.grad.double().numpy() * (1.0 if simulated else scale)
                name = ("true dynamics" if simulated else "learnt model") + (
                    ", through observations" if through else ""
                )
                add(name, each, time.process_time() - started)
        write(options.out, FIELDS, rows)  # whatever interrupts the longer ones


def planner(options: argparse.Namespace) -> None:
    """Write one row for the policy and one for the planner of each model."""
    rows = []
    acting: Any
    for path in options.models:
        model = PWM.load(path, device="cpu")
        for name, acting in (("policy", model), ("planner", Planner(model))):
            env = make_vec_env(options.env, options.episodes, seed=1000)
            returns, _ = evaluate_policy(acting, env, options.episodes, return_episode_rewards=True)
            observations: Any = env.reset()
            started = time.process_time()
            for _ in range(TIMED_ACTIONS):
                acting.predict(observations[:1], deterministic=True)
            seconds = (time.process_time() - started) / TIMED_ACTIONS
            rows.append([options.env, model.seed, name, float(np.mean(returns)), float(np.std(returns)), 1e3 * seconds])
            print(*map(_short, rows[-1]), sep=",", flush=True)
    write(options.out, ("env", "seed", "acting", "return_mean", "return_std", "ms_per_action"), rows)


def curves(options: argparse.Namespace) -> None:
    """Write the evaluations of all runs, in the order of environments, algorithms and seeds."""
    fields = ("env_steps", "train/n_updates", "cpu_seconds", "return_mean", "return_std", "episodes")
    rows = []
    for path in sorted(options.runs.glob("*/*/*/curve.csv")):
        run = json.loads((path.parent / "run.json").read_text())
        for row in read(path):
            numbers = [f"{float(row[name]):.6g}" if row.get(name) else "" for name in fields]
            rows.append([*path.parts[-4:-1], *numbers, run["git_revision"][:7], run["processor"]])
    names = [name.removeprefix("train/") for name in fields]
    write(options.out, ("env", "algorithm", "seed", *names, "revision", "processor"), rows)


def compared(each: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return the mean gradient's cosine to the truth, its relative length, and the noise of one rollout's gradient.

    :param each: (N, A) gradients.
    :param truth: (A,) gradient.
    """
    mean = each.mean(0)
    length = float(np.linalg.norm(mean))
    cosine = float(mean @ truth / (length * np.linalg.norm(truth)))
    noise = float(np.sqrt(each.var(0).sum()) / length)
    return cosine, length / float(np.linalg.norm(truth)), noise


def write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *([_short(x) for x in row] for row in rows)])


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plot(options: argparse.Namespace) -> None:
    """Draw the learning curves and the gradients."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read(options.results / "curves.csv"):
        if not float(row["n_updates"] or 0):
            continue  # nothing has been learnt yet, and an axis of logarithms has no place for it
        runs.setdefault((row["env"], row["algorithm"], row["seed"]), []).append(row)
    envs = sorted({env for env, _, _ in runs})
    figure, axes = plt.subplots(2, len(envs), figsize=(4.4 * len(envs), 6), squeeze=False, layout="constrained")
    for column, env in enumerate(envs):
        for (of, label, _), rows in runs.items():
            if of != env:
                continue
            style: dict[str, Any] = {"color": COLORS[label], "alpha": 0.8, "marker": ".", "label": NAMES[label]}
            returns = [float(row["return_mean"]) for row in rows]
            for line, name in enumerate(("n_updates", "cpu_seconds")):
                axes[line, column].plot([float(row[name]) for row in rows], returns, **style)
        for line, name in enumerate(("policy updates", "CPU seconds of training")):
            axes[line, column].set(xlabel=name, ylabel=f"return in {env}", xscale="log")
            axes[line, column].xaxis.set_minor_formatter(NullFormatter())
    _legend(figure, axes)
    figure.savefig(options.out / "does-the-model-help-learning.png", dpi=110)

    found = {path.stem: read(path) for path in sorted((options.results / "gradients").glob("*.csv"))}
    figure, axes = plt.subplots(2, len(found), figsize=(4.4 * len(found), 6), squeeze=False, layout="constrained")
    for column, (env, rows) in enumerate(found.items()):
        for name, style in ESTIMATES.items():
            chosen = [row for row in rows if row["estimate"] == name and row["rows"] == "all"]
            horizons = [int(row["horizon"]) for row in chosen]
            for line, (field, title) in enumerate(
                (("cosine", "cosine to the smoothed truth"), ("noise", "relative noise"))
            ):
                axes[line, column].plot(
                    horizons, [float(row[field]) for row in chosen], label=name, marker=".", **style
                )
                axes[line, column].set(xlabel=f"steps in {env}", ylabel=title, xscale="log")
                axes[line, column].set_xticks(horizons, map(str, horizons))
        axes[1, column].set_yscale("log")
    _legend(figure, axes)
    figure.savefig(options.out / "does-the-model-help-gradients.png", dpi=110)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside upper center", ncols=min(2, axes.shape[1]), frameon=False
    )


def main() -> None:
    """Run the chosen part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("gradients")
    part.add_argument("--env", required=True)
    part.add_argument("--model", type=Path, required=True)
    part.add_argument("--states", type=int, default=32, help="states that rollouts start from")
    part.add_argument("--noises", type=int, default=8, help="rollouts from each")
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--out", type=Path, required=True)
    part.set_defaults(run=gradients)
    part = parts.add_parser("planner")
    part.add_argument("--env", required=True)
    part.add_argument("--models", type=Path, nargs="+", required=True)
    part.add_argument("--episodes", type=int, default=10)
    part.add_argument("--out", type=Path, required=True)
    part.set_defaults(run=planner)
    part = parts.add_parser("curves")
    part.add_argument("runs", type=Path)
    part.add_argument("--out", type=Path, required=True)
    part.set_defaults(run=curves)
    part = parts.add_parser("plot")
    part.add_argument("results", type=Path)
    part.add_argument("out", type=Path)
    part.set_defaults(run=plot)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
