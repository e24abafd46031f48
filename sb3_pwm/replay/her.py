"""Hindsight experience replay (HER, arXiv 1707.01495) for windows."""

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pwm.buffers import (
    SEQUENCE_CLASSES,
    DictSequenceReplayBuffer,
    SequenceReplayBuffer,
    sequence_buffer_class,
)
from sb3_pwm.checks import check_boolean, check_integer
from sb3_pwm.replay.windows import Windows
from sb3_pwm.type_aliases import SequenceSamples

STRATEGIES = ", ".join(f'"{strategy.name.lower()}"' for strategy in GoalSelectionStrategy)


class SequenceHerReplayBuffer(DictSequenceReplayBuffer, HerReplayBuffer):
    """SB3's ``HerReplayBuffer`` that gives windows; ``PWM`` takes it where SB3's is asked for.

    In a share of the windows, n / (n + 1) for n sampled goals, the goal of every step is one that the same episode
    achieved. Rewards are computed anew by the environment's ``compute_reward``, and terminations by its
    ``compute_terminated`` if it has one: a window ends where it says so. Unlike with SB3's buffer, episodes that still
    go on are replayed too, with goals that they have achieved so far.

    :param args: as for SB3's ``HerReplayBuffer``.
    :param n_sampled_goal: relabelled windows for each that is left as it is, 0 or more.
    :param goal_selection_strategy: where the goal comes from: ``"future"`` of the window's first step, the ``"final"``
        step of its episode, or any step of its ``"episode"``.
    :param copy_info_dict: keep the environment's infos for ``compute_reward``.
    :param kwargs: as for SB3's ``HerReplayBuffer``.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if the strategy is unknown, a number is out of range, or the observations are not those of a
        goal environment.
    """

    def __init__(
        self,
        *args: Any,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        **kwargs: Any,
    ) -> None:
        if str(getattr(goal_selection_strategy, "name", goal_selection_strategy)).upper() not in (
            GoalSelectionStrategy.__members__
        ):
            raise ValueError(f"goal_selection_strategy={goal_selection_strategy!r}: allowed are {STRATEGIES}")
        check_integer("n_sampled_goal", n_sampled_goal, 0)
        check_boolean("copy_info_dict", copy_info_dict)
        super().__init__(
            *args,
            n_sampled_goal=n_sampled_goal,
            goal_selection_strategy=goal_selection_strategy,
            copy_info_dict=copy_info_dict,
            **kwargs,
        )
        missing = sorted({"achieved_goal", "desired_goal"} - set(self.observations))
        if missing:
            raise ValueError(f"hindsight replay needs {' and '.join(missing)} in the observations")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "env"}

    def _has_room(self) -> bool:
        return False  # goals are chosen, and rewards computed, on the host

    def _relabelled(self, windows: Windows, env: VecNormalize | None) -> SequenceSamples:
        rows, columns, mask = windows
        n = int(self.her_ratio * len(columns))
        observations = {
            key: np.concatenate([self.observations[key][rows[:1], columns], self.next_observations[key][rows, columns]])
            for key in self.observations
        }
        rewards = self.rewards[rows, columns].copy()
        terminations = self.dones[rows, columns] * (1 - self.timeouts[rows, columns])
        if n:
            chosen = np.random.permutation(len(columns))[:n]  # the actor's rollouts start in a batch's first windows
            observations["desired_goal"][:, chosen] = self._goals(rows[0, chosen], columns[chosen])
            counted, window = np.nonzero(mask[:, chosen])  # what lies behind may be of another episode, or nothing yet
            steps = counted, chosen[window]
            achieved, goals = observations["achieved_goal"][1:][steps], observations["desired_goal"][0, steps[1]]
            infos = self._infos(rows[steps], columns[steps[1]])
            rewards[:, chosen] = 0
            rewards[steps] = self._ask("compute_reward", achieved, goals, infos)
            if self._environment().has_attr("compute_terminated"):
                terminations[:, chosen] = 0
                terminations[steps] = self._ask("compute_terminated", achieved, goals, infos) != 0
                ended = np.logical_or.accumulate(terminations[:-1, chosen] != 0, axis=0)
                mask = mask.copy()
                mask[1:, chosen] &= ~ended
        normalized: Any = self._normalize_obs(observations, env)
        return SequenceSamples(
            observations={key: self._tensor(values) for key, values in normalized.items()},
            actions=self._tensor(self.actions[rows, columns]),
            rewards=self._tensor(self._normalize_reward(rewards, env)),
            terminations=self._tensor(terminations),
            mask=self._tensor(mask.astype(np.float32)),
        )

    def _goals(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return an achieved goal for each window that starts at the given places."""
        ages = (rows - self.oldest) % self.buffer_size
        chosen = np.empty_like(ages)
        for column in np.unique(columns):
            here = columns == column
            ended = np.sort((np.flatnonzero(self.dones[: self.size(), column]) - self.oldest) % self.buffer_size)
            place = np.searchsorted(ended, ages[here])
            last = np.append(ended, self.size() - 1)[place]  # of an episode that goes on, its newest step
            if self.goal_selection_strategy == GoalSelectionStrategy.FUTURE:
                first = ages[here]
            else:
                first = np.append(-1, ended)[place] + 1
            if self.goal_selection_strategy == GoalSelectionStrategy.FINAL:
                first = last
            chosen[here] = np.random.randint(first, last + 1)
        goals: np.ndarray = self.next_observations["achieved_goal"][(self.oldest + chosen) % self.buffer_size, columns]
        return goals

    def _infos(self, rows: np.ndarray, columns: np.ndarray) -> list[dict[str, Any]]:
        """Return the infos of (N,) steps."""
        if self.copy_info_dict:
            return list(copy.deepcopy(self.infos[rows, columns]))
        return [{} for _ in rows]

    def _environment(self) -> VecEnv:
        if self.env is None or not self.env.has_attr("compute_reward"):
            raise ValueError("hindsight replay needs an environment that computes rewards; call set_env(env) first")
        return self.env

    def _ask(self, name: str, achieved: np.ndarray, goals: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """Return what the environment says of (N, ...) achieved goals and (N, ...) goals, as (N,) numbers.

        :raises ValueError: if it does not answer for each of them, with finite numbers.
        """
        answer = np.asarray(self._environment().env_method(name, achieved, goals, infos, indices=[0])[0], np.float32)
        if answer.shape == () and name == "compute_terminated":
            return np.full(len(achieved), answer)  # the same whatever was achieved
        if answer.shape != (len(achieved),):
            raise ValueError(
                f"{name} of the environment must answer for many goals at once: given {len(achieved)} achieved and "
                f"desired goals it returned the shape {answer.shape}; allowed: ({len(achieved)},)"
            )
        for i in np.flatnonzero(~np.isfinite(answer))[:1]:
            raise ValueError(
                f"{name} of the environment returned {answer[i]} for {achieved[i]} and the goal {goals[i]}; allowed: "
                "finite float32 numbers"
            )
        return answer


SEQUENCE_CLASSES[HerReplayBuffer] = SequenceHerReplayBuffer


def chosen_buffer_class(
    given: type[ReplayBuffer] | None, observation_space: spaces.Space[Any]
) -> type[SequenceReplayBuffer]:
    """Return the class of a model's replay buffer.

    :param given: what the user asks for; None for the one that fits the observations.
    :param observation_space: of the environment.
    :raises TypeError: if it gives no windows.
    """
    if given is None:
        return sequence_buffer_class(observation_space)
    if given is HerReplayBuffer:
        return SequenceHerReplayBuffer
    if not (isinstance(given, type) and issubclass(given, SequenceReplayBuffer)):
        found = getattr(given, "__name__", repr(given))
        raise TypeError(f"replay_buffer_class must be a SequenceReplayBuffer or HerReplayBuffer, not {found}")
    return given
