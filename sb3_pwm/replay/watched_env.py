"""What a VecEnv gives at each step, and whether somebody else has moved its environments in between."""

import contextlib
import copy
import uuid
import warnings
import weakref
from collections.abc import Iterator
from types import MethodType
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    unwrap_vec_normalize,
    unwrap_vec_wrapper,
)

from sb3_pwm.observations import are_tensors, on_host, own_copy

MOVES = ("reset", "step")
LAST = "terminal_observation"


class OwnCopies(VecEnvWrapper):
    """Copy what an environment gives, which may use the same arrays at every step; ``dones`` become booleans.

    Observations that are tensors stay so; rewards, dones and infos become arrays.
    """

    def reset(self) -> Any:
        """Reset all environments."""
        return self._own_observations(self.venv.reset())

    def step(self, actions: np.ndarray) -> Any:
        """Step all environments."""
        return self._own(*self.venv.step(actions))

    def step_wait(self) -> Any:
        """Wait for a step that has been begun."""
        return self._own(*self.venv.step_wait())

    def _own(self, observations: Any, rewards: Any, dones: Any, infos: Any) -> Any:
        own_infos = [{key: self._own_info(key, value) for key, value in info.items()} for info in infos]
        own = self._own_observations(observations)
        return own, np.array(on_host(rewards)), np.array(on_host(dones)).astype(bool), own_infos

    def _own_observations(self, observations: Any) -> Any:
        return own_copy(observations)

    def _own_info(self, key: str, value: Any) -> Any:
        return own_copy(value) if key == LAST and are_tensors(value) else copy.copy(on_host(value))


class OwnArrays(OwnCopies):
    """The same in arrays alone, for what does not take tensors, such as ``VecNormalize`` and ``evaluate_policy``."""

    def _own_observations(self, observations: Any) -> Any:
        return own_copy(on_host(observations))

    def _own_info(self, key: str, value: Any) -> Any:
        return copy.copy(on_host(value))


class WatchedEnv(OwnCopies):
    """The environment that a model collects steps in: knows what is to be stored, and who else has moved it.

    Calls are counted where everybody's pass through: at the innermost VecEnv, and at its environments where they are in
    this process.

    :param venv: the environment.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.normalizer = unwrap_vec_normalize(venv)
        self.original_observations: Any = None
        """Of the newest step, not normalised; after an episode's end those of the next one."""
        self.original_rewards: Any = None
        self.last_observations: dict[int, Any] = {}
        """By environment, of the episodes that the newest step has ended."""
        self._counters = list(counters_of(innermost(venv)))
        self._owners_turn = False
        self.note()

    def __reduce__(self) -> Any:
        if self.normalizer is not None:  # whose copy has no environment, and so nothing to watch
            return type(None), ()
        return WatchedEnv, (self.venv,), {"_noted": self._noted}  # a VecEnvWrapper can be neither copied nor pickled

    def expect_step(self) -> None:
        """Take the next step for the owner's; callbacks too can call this object's methods."""
        self._owners_turn = True

    def note(self) -> None:
        """Remember the present moves as the owner's."""
        self._noted = self._moves

    def doubt(self) -> None:
        """Take the environments for moved."""
        self._noted = -1

    @property
    def _moves(self) -> int:
        return sum(counter.calls for counter in self._counters)

    @property
    def moved_by_others(self) -> bool:
        """Whether somebody has called ``reset`` or ``step`` since the owner's last one."""
        return self._moves != self._noted

    def warn_of_moves(self) -> None:
        """Warn the owner's user of :attr:`moved_by_others`."""
        warnings.warn(
            "somebody else has stepped or reset the training environment (an evaluation, a callback, or by hand): its "
            "present episodes end here, and it is reset; evaluate in another environment",
            UserWarning,
            stacklevel=3,
        )

    def step(self, actions: np.ndarray) -> Any:
        """Step all environments.

        :raises ValueError: if an episode's last observation is not in its info.
        :raises TypeError: if there is a ``VecMonitor`` around tensors.
        """
        try:
            observations, rewards, dones, infos = super().step(actions)
        except TypeError as error:
            monitor = unwrap_vec_wrapper(self.venv, VecMonitor)
            if monitor is None or not are_tensors(monitor.venv.reset()):
                raise
            raise TypeError(
                "the environment gives tensors, and VecMonitor takes arrays only; leave it out (infos count "
                "episodes), or give it arrays: VecMonitor(sb3_pwm.replay.watched_env.OwnArrays(venv))"
            ) from error
        if not self._owners_turn:
            return observations, rewards, dones, infos
        self._owners_turn = False
        self.note()
        self.original_observations, self.original_rewards = observations, rewards
        if self.normalizer is not None:
            self.original_observations = self.normalizer.get_original_obs()
            self.original_rewards = self.normalizer.get_original_reward()
        self.last_observations = {i: self._last_observation(i, infos[i]) for i in map(int, np.flatnonzero(dones))}
        return observations, rewards, dones, infos

    def _last_observation(self, index: int, info: dict[str, Any]) -> Any:
        last = info.get(LAST)
        if last is None:
            raise ValueError(
                f"environment {index} ended an episode and its info has no 'terminal_observation', so that what the "
                "last step led to is not known; the VecEnv must put the episode's last observation there"
            )
        return last if self.normalizer is None else self.normalizer.unnormalize_obs(last)

    def original_of(self, seen: Any) -> Any:
        """Return what the environments have given at a reset, as it is to be stored.

        :param seen: the same as the policy sees it.
        :raises ValueError: if a wrapper around the ``VecNormalize`` has changed it.
        """
        if self.normalizer is None:
            return seen
        original = self.normalizer.get_original_obs()
        expected = self.normalizer.normalize_obs(original)
        pairs = [(seen[key], expected[key]) for key in expected] if isinstance(expected, dict) else [(seen, expected)]
        if not all(np.array_equal(own, normal, equal_nan=True) for own, normal in pairs):
            kind = type(self.venv).__name__
            raise ValueError(f"a wrapper around VecNormalize ({kind}) changes observations; put it inside VecNormalize")
        return original

    def next_observations(self) -> Any:
        """Return what the newest step led to, not normalised: (n_envs, *obs_shape), or one such array per key."""
        following = own_copy(self.original_observations)
        for index, last in self.last_observations.items():
            if isinstance(following, dict):
                for key, values in following.items():
                    put(values, index, last[key])
            else:
                put(following, index, last)
        return following


def check_normalizer_is_outside(venv: VecEnv) -> None:
    """Check that no wrapper around a ``VecNormalize`` changes the space of observations.

    What is stored is what ``VecNormalize`` has got; what the policy sees must be the same, normalised.

    :raises ValueError: if one does; names it.
    """
    normalizer = unwrap_vec_normalize(venv)
    outer: Any = venv
    while normalizer is not None and outer is not normalizer:
        if outer.observation_space != outer.venv.observation_space:
            kind = type(outer).__name__
            raise ValueError(
                f"{kind} lies around VecNormalize and makes observations {outer.observation_space} of "
                f"{outer.venv.observation_space}; put it inside: VecNormalize({kind}(...))"
            )
        outer = outer.venv


class CountedMethod:
    """A method that counts its calls; copied or pickled with its object, it goes on as the copy's.

    It does not own the object, which owns it: neither would be freed at once.

    :param method: bound method, or a function that an object has in its place.
    :param only: count only calls whose first argument is one of these; empty for all.
    :param calls: how many there have been.
    """

    def __init__(self, method: Any, only: tuple[str, ...] = (), calls: int = 0) -> None:
        self._function = getattr(method, "__func__", method)
        self._owner = weakref.ref(method.__self__) if hasattr(method, "__func__") else None
        self.only, self.calls = only, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        if not self.only or (args and args[0] in self.only) or kwargs.get("method_name") in self.only:
            self.calls += 1
        return (
            self._function(*args, **kwargs) if self._owner is None else self._function(self._owner(), *args, **kwargs)
        )

    def __reduce__(self) -> Any:
        owner = None if self._owner is None else self._owner()
        return recounted, (self._function, owner, self.only, self.calls)


def recounted(function: Any, owner: Any, only: tuple[str, ...], calls: int) -> CountedMethod:
    """Return the :class:`CountedMethod` of an object that has been copied or unpickled."""
    return CountedMethod(function if owner is None else MethodType(function, owner), only, calls)


def counters_of(venv: VecEnv) -> Iterator[CountedMethod]:
    """Yield counters of everybody's calls that move an innermost VecEnv's environments.

    :param venv: not a wrapper.
    """
    yield from (counted(venv, name) for name in (*MOVES, "step_async"))
    yield counted(venv, "env_method", MOVES)
    if isinstance(venv, DummyVecEnv):
        for env in {id(env.unwrapped): env.unwrapped for env in venv.envs}.values():
            yield from (counted(env, name) for name in MOVES)


def innermost(venv: VecEnv) -> VecEnv:
    """Return the VecEnv below all wrappers; ``unwrapped`` may be something else, such as a simulator."""
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
    return venv


def counted(owner: Any, name: str, only: tuple[str, ...] = ()) -> CountedMethod:
    """Return the counter of a method; there is one for all who ask, and one that stays 0 where nothing can be set."""
    method = getattr(owner, name)
    if not isinstance(method, CountedMethod):
        method = CountedMethod(method, only)
        with contextlib.suppress(AttributeError):
            setattr(owner, name, method)
    return method


def put(values: Any, index: int, value: Any) -> None:
    """Set a row of an array, or of a tensor, whichever of the two the value is."""
    values[index] = torch.as_tensor(value) if isinstance(values, torch.Tensor) else on_host(value)


def drop_late_answers(env: VecEnv | None) -> None:
    """Read what processes of environments still answer to what an interrupt broke off.

    The next reset would take it for its own answer, and false steps would follow.

    :raises EOFError: if a process has ended.
    """
    processes = env and innermost(env)
    if not isinstance(processes, SubprocVecEnv):
        return
    question = uuid.uuid4().hex  # unlike all earlier ones, of which one may have been interrupted too
    for pipe, process in zip(processes.remotes, processes.processes, strict=True):
        if not process.is_alive():
            raise EOFError
        pipe.send(("set_attr", ("_last_question", question)))
        pipe.send(("get_attr", "_last_question"))
    for pipe in processes.remotes:
        while not (isinstance(answer := pipe.recv(), str) and answer == question):
            pass
    processes.waiting = False


@contextlib.contextmanager
def lost_processes_explained(env: VecEnv | None) -> Iterator[None]:
    """Say what to do where a process of a ``SubprocVecEnv`` has ended: its pipe only breaks."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        for index, process in enumerate(getattr(env and innermost(env), "processes", [])):
            process.join(1)  # one that has just closed its pipe may still be there
            if not process.is_alive():
                raise RuntimeError(
                    f"the process of environment {index} has ended (exit code {process.exitcode}), as after Ctrl-C, "
                    "which a terminal sends to all processes, or an error in the environment; the model is intact: "
                    "make the environments anew, call set_env(env), and learn again"
                ) from error
        raise


@contextlib.contextmanager
def tensors_refused(normalizer: VecNormalize | None) -> Iterator[None]:
    """Say what to do where a ``VecNormalize``, which computes with arrays, is reset and gets tensors.

    :raises TypeError: if it does.
    """
    try:
        yield
    except (AssertionError, TypeError, RuntimeError):  # of NumPy, or VecNormalize's own, without words
        if normalizer is None or not are_tensors(normalizer.venv.reset()):
            raise
    else:
        if normalizer is None or not are_tensors(vars(normalizer).get("old_obs")):
            return
    raise TypeError(
        "the environment gives tensors, and VecNormalize takes arrays only; leave it out (a model has its own scales), "
        "or give it arrays: VecNormalize(sb3_pwm.replay.watched_env.OwnArrays(venv))"
    )
