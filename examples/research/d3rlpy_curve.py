"""Measure how d3rlpy's offline learners fare while they learn from a data set alone: one CSV file per run.

    python -m venv .venv-d3rlpy && .venv-d3rlpy/bin/pip install -r examples/research/requirements-d3rlpy.txt
    .venv-d3rlpy/bin/python examples/research/d3rlpy_curve.py --algo td3bc --data sac.npz --env Hopper-v5 --out bc.csv

``--data`` is a NumPy file in the D4RL layout, with actions in [-1, 1]; the environment's action bounds must be those.
The environment only evaluates (deterministic actions), which is not counted in ``cpu_seconds``; its initial states are
those of ``offline_curve.py``. One torch thread, CPU.

The learners have d3rlpy 2.8.1's default settings, and the preprocessing of d3rlpy's own reproduction scripts
(``reproductions/offline/`` in github.com/takuseno/d3rlpy):

* td3bc: ``StandardObservationScaler()``, from ``td3_plus_bc.py``, whose other settings are the defaults.
* iql: ``ReturnBasedRewardScaler(multiplier=1000.0)``, from ``iql.py``. Its cosine schedule of the actor's learning rate
  over 500,000 updates is left out; its other settings are the defaults.
* cql: no preprocessing in ``cql.py``. Its three hidden layers of 256 and ``alpha_learning_rate=0.0`` are left out.
* bc: no preprocessing; there is no such script.

d3rlpy never samples the last transition of an episode that ends with a time-out, nor the one where the data end.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import d3rlpy
import gymnasium as gym
import mujoco
import numpy as np
import torch
from d3rlpy.algos import BCConfig, CQLConfig, IQLConfig, QLearningAlgoBase, TD3PlusBCConfig
from d3rlpy.preprocessing import ReturnBasedRewardScaler, StandardObservationScaler

FIELDS = (
    "algorithm",
    "environment",
    "data",
    "transitions",
    "seed",
    "updates",
    "return_mean",
    "return_std",
    "episodes",
    "cpu_seconds",
    "settings",
)
# Of each algorithm: its configuration, and what in it is not d3rlpy's default.
ALGORITHMS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "td3bc": (
        lambda: TD3PlusBCConfig(observation_scaler=StandardObservationScaler()),
        {"observation_scaler": "StandardObservationScaler()"},
    ),
    "iql": (
        lambda: IQLConfig(reward_scaler=ReturnBasedRewardScaler(multiplier=1000.0)),
        {"reward_scaler": "ReturnBasedRewardScaler(multiplier=1000.0)"},
    ),
    "cql": (CQLConfig, {}),
    "bc": (BCConfig, {}),
}


def load(path: Path, transitions: int | None) -> d3rlpy.dataset.MDPDataset:
    """Load the first transitions; an episode that ends because the data end there ends with a time-out."""
    arrays = {name: values[:transitions] for name, values in np.load(path).items()}
    terminals = arrays["terminals"].astype(bool)
    timeouts = arrays["timeouts"].astype(bool)
    timeouts[-1] = True
    timeouts &= ~terminals
    going_on = ~(terminals | timeouts)[:-1]  # d3rlpy takes the next row's observation for the next observation
    assert np.array_equal(arrays["next_observations"][:-1][going_on], arrays["observations"][1:][going_on])
    assert np.abs(arrays["actions"]).max() <= 1.0
    return d3rlpy.dataset.MDPDataset(
        observations=arrays["observations"].astype(np.float32),
        actions=arrays["actions"].astype(np.float32),
        rewards=arrays["rewards"].astype(np.float32),
        terminals=terminals.astype(np.float32),
        timeouts=timeouts.astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
        action_size=arrays["actions"].shape[1],
    )


def evaluate(algo: QLearningAlgoBase[Any, Any], env_id: str, seed: int, episodes: int) -> list[float]:
    """Return the undiscounted return of each episode of the deterministic policy."""
    env = gym.make(env_id)
    assert isinstance(env.action_space, gym.spaces.Box)
    assert np.all(env.action_space.low == -1.0)
    assert np.all(env.action_space.high == 1.0)
    env.reset(seed=seed)
    returns = []
    for _ in range(episodes):
        observation, _ = env.reset()  # again, as Stable-Baselines3's evaluate_policy does
        total, done = 0.0, False
        while not done:
            action = algo.predict(np.asarray(observation, dtype=np.float32)[None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=ALGORITHMS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--env", required=True, help="environment that evaluates")
    parser.add_argument("--transitions", type=int, help="use only the first ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20_000, help="gradient steps, a multiple of --every")
    parser.add_argument("--every", type=int, default=2_000, help="gradient steps between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="episodes per evaluation")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.updates % args.every:
        parser.error("--updates must be a multiple of --every")

    torch.set_num_threads(1)
    d3rlpy.seed(args.seed)
    dataset = load(args.data, args.transitions)
    config, settings = ALGORITHMS[args.algo]
    algo = config().create(device="cpu:0")
    versions = {module.__name__: module.__version__ for module in (d3rlpy, gym, mujoco)}
    row = {
        "algorithm": args.algo,
        "environment": args.env,
        "data": args.data.stem,
        "transitions": sum(episode.size() for episode in dataset.episodes),
        "seed": args.seed,
        "settings": json.dumps(settings | versions, sort_keys=True),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.DictWriter(file, FIELDS).writeheader()
    epochs = algo.fitter(
        dataset,
        n_steps=args.updates,
        n_steps_per_epoch=args.every,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    cpu_start, evaluation_cpu = time.process_time(), 0.0
    for epoch, _ in epochs:
        cpu = time.process_time()
        returns = evaluate(algo, args.env, 10_000 + args.seed, args.episodes)
        row |= {
            "updates": epoch * args.every,
            "return_mean": round(float(np.mean(returns)), 2),
            "return_std": round(float(np.std(returns)), 2),
            "episodes": args.episodes,
            "cpu_seconds": round(cpu - cpu_start - evaluation_cpu, 1),
        }
        with args.out.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)
        print({key: row[key] for key in FIELDS if key != "settings"}, flush=True)
        evaluation_cpu += time.process_time() - cpu


if __name__ == "__main__":
    main()
