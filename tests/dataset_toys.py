"""Small data sets for the tests of the importers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.datasets.episodes import Episode

ACTIONS = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def episode(number: float, length: int, *, terminated: bool = False) -> Episode:
    """Observations (episode, step, 0); the reward is the step's number."""
    steps = np.arange(length + 1)
    observations = np.stack([np.full(length + 1, number), steps, 0 * steps], -1).astype(np.float32)
    actions = np.stack([np.linspace(-2, 2, length), np.linspace(0, 1, length)], -1).astype(np.float32)
    return Episode(observations, actions, steps[1:].astype(np.float32), terminated)


def flat(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Give the D4RL layout."""
    observations: list[Any] = [e.observations for e in episodes]
    ends = [np.eye(1, len(e.rewards), len(e.rewards) - 1)[0] for e in episodes]
    return {
        "observations": np.concatenate([each[:-1] for each in observations]),
        "next_observations": np.concatenate([each[1:] for each in observations]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": np.concatenate([end * e.terminated for e, end in zip(episodes, ends, strict=True)]),
        "timeouts": np.concatenate([end * (not e.terminated) for e, end in zip(episodes, ends, strict=True)]),
    }


def check_holds(buffer: ReplayBuffer, episodes: Sequence[Episode]) -> None:
    """Check that a buffer holds these episodes and nothing else."""
    expected = flat(episodes)
    n = len(expected["rewards"])
    assert type(buffer).__name__ == "SequenceReplayBuffer"
    assert (buffer.size(), buffer.n_envs) == (n, 1)
    np.testing.assert_array_equal(buffer.observations[:n, 0], expected["observations"])
    np.testing.assert_array_equal(buffer.next_observations[:n, 0], expected["next_observations"])
    np.testing.assert_array_equal(buffer.rewards[:n, 0], expected["rewards"])
    np.testing.assert_array_equal(buffer.dones[:n, 0], expected["terminals"] + expected["timeouts"])
    np.testing.assert_array_equal(buffer.timeouts[:n, 0], expected["timeouts"])
    scaled = 2 * (expected["actions"] - ACTIONS.low) / (ACTIONS.high - ACTIONS.low) - 1
    np.testing.assert_allclose(buffer.actions[:n, 0], scaled, atol=1e-6)


THREE = [episode(0, 4, terminated=True), episode(1, 1), episode(2, 3)]


def damage_file(path: Path, seed: int) -> None:
    """Cut the end off, or change some bytes."""
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 2:
        content = content[: rng.integers(len(content))]
    else:
        for place in rng.integers(len(content), size=20):
            content[place] = rng.integers(256)
    path.write_bytes(content)
