"""Measure how a policy fares while it learns from a data set alone, and then in the environment: a CSV file per run.

    python examples/research/offline_curve.py --data sac_cheetah.npz --env HalfCheetah-v5 --seed 0 \\
        --online-steps 20000 --out offline.csv --plot offline.png

``--data`` is a NumPy file in the D4RL layout, see :func:`sb3_pwm.datasets.from_npz`, or what ``save_replay_buffer`` of
PWM or another SB3 algorithm wrote (``.pkl``; a pickle runs code: only files that you trust); other formats have
importers of their own there. ``--random N`` takes N steps of random actions instead. Without ``--online-steps`` the
environment is used for its spaces and for the evaluations only (deterministic actions, not counted in
``cpu_seconds``). One torch thread, CPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from learning_curve import CurveCallback, add_settings, start_file

from sb3_pwm import PWM, SequenceReplayBuffer
from sb3_pwm.datasets import from_arrays, from_npz, from_replay_buffer

FIELDS = (
    "algorithm",
    "environment",
    "data",
    "transitions",
    "seed",
    "updates",
    "env_steps",
    "return_mean",
    "return_std",
    "episodes",
    "value_calibration",
    "imagined_return",
    "success_rate",
    "success_once_rate",
    "cpu_seconds",
    "settings",
)


class OfflineCurveCallback(CurveCallback):
    """Count policy updates while there are no environment steps."""

    fields = FIELDS

    def measure(self) -> dict[str, Any]:
        assert isinstance(self.model, PWM)
        counts = {"updates": self.num_timesteps, "env_steps": 0}
        if self.row["online"]:
            counts = {"updates": self.row["updates"], "env_steps": self.num_timesteps}
        imagined = self.model._learner.pop_metrics().get("imagined_return", np.nan)
        return super().measure() | counts | {"imagined_return": round(imagined, 3)}


def read_data(path: Path, env: gym.Env[np.ndarray, np.ndarray]) -> SequenceReplayBuffer:
    """Read what ``save_replay_buffer`` wrote (``.pkl``), or a NumPy file in the D4RL layout."""
    if path.suffix == ".pkl":
        return from_replay_buffer(path)
    return from_npz(path, env.observation_space, env.action_space)


def first_steps(data: SequenceReplayBuffer, n_steps: int, buffer_size: int) -> SequenceReplayBuffer:
    """Move the first ``n_steps`` of a buffer of one environment that was never full before into one of another size."""
    data.pos, data.full = n_steps % data.buffer_size, n_steps == data.buffer_size
    return from_replay_buffer(data, buffer_size=buffer_size)


def random_data(env: gym.Env[np.ndarray, np.ndarray], n_steps: int, seed: int) -> dict[str, np.ndarray]:
    """Act at random; the last episode counts as timed out."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    columns["next_observations"] = []
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    for _ in range(n_steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        row = {"observations": observation, "next_observations": following, "actions": action, "rewards": reward}
        for name, value in (row | {"terminals": terminated, "timeouts": truncated and not terminated}).items():
            columns[name].append(value)
        observation = env.reset()[0] if terminated or truncated else following
    columns["timeouts"][-1] = not columns["terminals"][-1]
    return {name: np.array(values) for name, values in columns.items()}


def plot(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw the offline and the online part of a run beside each other."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install -c constraints.txt '.[plot]'") from error

    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(9, 4))
    for axis, online, label in zip(axes, (False, True), ("policy updates, offline", "environment steps"), strict=True):
        part = [row for row in rows if row["online"] == online]
        steps = [row["env_steps" if online else "updates"] for row in part]
        axis.plot(steps, [row["return_mean"] for row in part], marker="o")
        axis.set_xlabel(label)
    axes[0].set_ylabel("return")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--random", type=int, metavar="N")
    parser.add_argument("--env", required=True, help="environment that gives the spaces and evaluates")
    parser.add_argument("--transitions", type=int, help="use only the first ones")
    parser.add_argument("--name", default="pwm", help="name in the CSV's algorithm column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20_000, help="policy updates without the environment")
    parser.add_argument("--every", type=int, default=2_000, help="updates between evaluations")
    parser.add_argument("--online-steps", type=int, default=0, help="environment steps afterwards")
    parser.add_argument("--online-every", type=int, default=5_000, help="environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per evaluation")
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="image file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    env = gym.make(args.env)
    if args.data:
        data = read_data(args.data, env)
    else:
        data = from_arrays(random_data(env, args.random, args.seed), env.observation_space, env.action_space)
    data_name = args.data.stem if args.data else "random"
    transitions = min(data.size(), args.transitions or data.size())
    data = first_steps(data, transitions, transitions + args.online_steps)
    settings: dict[str, Any] = dict(args.set)
    model = PWM.from_dataset(data, seed=args.seed, device="cpu", **settings)
    row = {
        "algorithm": args.name,
        "environment": args.env,
        "data": data_name,
        "transitions": transitions,
        "seed": args.seed,
        "online": False,
        "settings": json.dumps(settings),
    }
    start_file(args.out, FIELDS)
    offline = OfflineCurveCallback(args.env, args.every, args.episodes, row, args.out)
    model.learn_offline(args.updates, callback=offline)
    rows = offline.rows
    if args.online_steps:
        model.set_env(env)
        row |= {"online": True, "updates": args.updates}
        online = OfflineCurveCallback(args.env, args.online_every, args.episodes, row, args.out)
        model.learn(args.online_steps, callback=online)
        rows += online.rows
    if args.plot:
        plot(args.plot, rows, f"{args.env}, {data_name}")


if __name__ == "__main__":
    main()
