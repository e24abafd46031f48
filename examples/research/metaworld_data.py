"""Record Meta-World's scripted experts, with and without noise: data for ``multitask_offline.py``.

    python examples/research/metaworld_data.py --episodes 100 --seed 0 --out metaworld

This writes ``metaworld/mw-reach.npz`` and so on for the tasks of ``sb3_pwm.suites.mt10()``, in the D4RL layout, and
needs the simulators (make install-multitask). The episodes are those of the suite: each action is taken twice, and the
time is out after 100 steps. The expert as it is, the expert with Gaussian noise of several sizes and random actions
take turns, an episode each. Printed is how many episodes were successful at their last step, and how many at any: the
expert of mw-door-open, for one, does not stay where it has succeeded.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_pwm.suites import mt10

NOISES = (0.0, 0.1, 0.3, 0.6, 1.0, None)  # standard deviation; None for random actions instead of the expert's
Row = dict[str, Any]


def record_episode(
    env: gym.Env[np.ndarray, np.ndarray], policy: Callable[[np.ndarray], np.ndarray], seed: int | None = None
) -> tuple[list[Row], list[bool]]:
    """Return the steps of an episode, one row each, and whether the task was solved after each of them."""
    rows: list[Row] = []
    successes: list[bool] = []
    observation, _ = env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy(observation)
        following, reward, terminated, truncated, info = env.step(action)
        row = {"observations": observation, "next_observations": following, "actions": action, "rewards": reward}
        rows.append(row | {"terminals": terminated, "timeouts": truncated and not terminated})
        successes.append(bool(info.get("success", False)))
        observation = following
    return rows, successes


def noisy_expert(expert: Any, noise: float | None, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Return a policy with actions in [-1, 1]: the expert's with noise, or random ones."""

    def act(observation: np.ndarray) -> np.ndarray:
        if noise is None:
            return rng.uniform(-1, 1, 4).astype(np.float32)
        action = np.clip(expert.get_action(observation.astype(np.float64)), -1, 1)
        return np.clip(action + noise * rng.standard_normal(4), -1, 1).astype(np.float32)

    return act


def record_task(name: str, n_episodes: int, seed: int) -> tuple[dict[str, np.ndarray], dict[float | None, np.ndarray]]:
    """Return the data of a task, and the two success rates at each size of the noise: at the last step, and at any."""
    from metaworld.policies import ENV_POLICY_MAP

    env = gym.make(f"sb3_pwm.suites:mt80/{name}-v0")
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    found: dict[float | None, list[tuple[bool, bool]]] = {noise: [] for noise in NOISES}
    for episode in range(n_episodes):
        noise = NOISES[episode % len(NOISES)]
        policy = noisy_expert(ENV_POLICY_MAP[f"{name.removeprefix('mw-')}-v3"](), noise, rng)
        own, successes = record_episode(env, policy, seed if episode == 0 else None)
        rows.extend(own)
        found[noise].append((successes[-1], any(successes)))
    env.close()
    data = {column: np.array([row[column] for row in rows]) for column in rows[0]}
    return data, {noise: np.mean(pairs, axis=0) for noise, pairs in found.items() if pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = mt10().names
    parser.add_argument("--task", nargs="+", default=names, choices=names, metavar="NAME", help="(default: all ten)")
    parser.add_argument("--episodes", type=int, default=100, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.task:
        data, rates = record_task(name, args.episodes, args.seed)
        np.savez_compressed(args.out / f"{name}.npz", **data)
        print(f"{name}: {len(data['rewards'])} steps; success at the last step, at any step")
        for noise, (last, once) in rates.items():
            what = "random actions" if noise is None else f"expert with noise {noise}" if noise else "expert"
            print(f"  {what}: {last:.2f}, {once:.2f}", flush=True)


if __name__ == "__main__":
    main()
