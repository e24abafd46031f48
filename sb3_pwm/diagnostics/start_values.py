"""Compare what the critics promise at the start of an episode with what the episode then gave."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_pwm.observations import own_copy


class StartValues:
    """Follow the discounted return of running episodes, one per environment.

    :param gamma: discount in (0, 1].
    :param n_envs: number of environments.
    :param maxlen: number of finished episodes to keep.
    """

    def __init__(self, gamma: float, n_envs: int, maxlen: int) -> None:
        self.gamma = gamma
        self.returns = np.zeros(n_envs)
        self.discounts = np.ones(n_envs)
        self.starts: list[Any] = [None] * n_envs
        self.finished: deque[tuple[float, float]] = deque(maxlen=maxlen)

    def start(self, index: int, observation: Any) -> None:
        """Begin an episode of environment ``index`` at ``observation``."""
        self.returns[index], self.discounts[index] = 0.0, 1.0
        self.starts[index] = observation

    def add(self, rewards: np.ndarray) -> None:
        """Count the (n_envs,) rewards of one step."""
        self.returns += self.discounts * rewards
        self.discounts *= self.gamma

    def finish(self, index: int, start_value: float, end_value: float) -> None:
        """End an episode.

        :param index: environment.
        :param start_value: value estimate of the episode's first observation.
        :param end_value: value estimate of its last one; 0 if the episode terminated, so that only a
            time-out's missing rest is estimated.
        """
        self.starts[index] = None
        self.finished.append((start_value, self.returns[index] + self.discounts[index] * end_value))

    def _totals(self) -> tuple[float, float]:
        values, returns = np.array(self.finished).reshape(-1, 2).sum(0)
        return float(values), float(returns)

    @property
    def ratio(self) -> float:
        """Mean value estimate over mean discounted return; 1 is calibrated, NaN if there is nothing to compare."""
        values, returns = self._totals()
        return values / returns if returns else float("nan")

    @property
    def gap(self) -> float:
        r"""What is promised too much: 0 is right, 1/3 twice the return, below 0 too little; NaN for no episodes.

        .. math:: (\bar V - \bar G) / (|\bar V| + |\bar G|) \in [-1, 1]

        with the means of value estimates V and discounted returns G; unlike their ratio it also says something where
        their signs differ.
        """
        values, returns = self._totals()
        size = abs(values) + abs(returns)
        return (values - returns) / size if size else float("nan")


def follow_episodes(
    tracker: StartValues,
    value: Callable[[Any], float],
    observations: Any,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> None:
    """Give one step of a vector of environments to a tracker.

    A time-out without its last observation, which SB3 lets environments leave out, does not count.

    :param tracker: the tracker.
    :param value: estimates the value of one observation.
    :param observations: (n_envs, *obs_shape) observations before the step, or one such array per key.
    :param rewards: (n_envs,) rewards.
    :param dones: (n_envs,) whether episodes ended, for whatever reason.
    :param infos: the step's infos.
    """
    for index, start in enumerate(tracker.starts):
        if start is None:
            tracker.start(index, observation_of(observations, index))
    tracker.add(rewards)
    for index in map(int, np.flatnonzero(dones)):
        info = infos[index]
        timed_out, last = info.get("TimeLimit.truncated", False), info.get("terminal_observation")
        if timed_out and last is None:
            tracker.starts[index] = None
            continue
        end_value = value(last) if timed_out else 0.0
        tracker.finish(index, value(tracker.starts[index]), end_value)


def run_episodes(
    tracker: StartValues, value: Callable[[Any], float], env: Any, act: Callable[[Any], np.ndarray]
) -> None:
    """Run as many episodes as the tracker keeps, divided evenly among the environments.

    Were they the first that end, short episodes would count more often than long ones.

    :param tracker: the tracker.
    :param value: estimates the value of one observation.
    :param env: SB3 VecEnv, which is reset first.
    :param act: returns the (n_envs, *action_shape) actions for the env's observations.
    """
    n_episodes = tracker.finished.maxlen or 0
    remaining = np.array([(n_episodes + index) // env.num_envs for index in range(env.num_envs)])
    observations = env.reset()
    while remaining.any():
        next_observations, rewards, dones, infos = env.step(act(observations))
        counted = dones & (remaining > 0)
        follow_episodes(tracker, value, observations, rewards, counted, infos)
        remaining -= counted
        observations = next_observations


def observation_of(observations: Any, index: int) -> Any:
    """Return a copy of environment ``index``'s observation."""
    if isinstance(observations, dict):
        return {key: own_copy(values[index]) for key, values in observations.items()}
    return own_copy(observations[index])
