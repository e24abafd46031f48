"""Action noise, and environments in other numbers or in processes that have ended."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_toys import false_steps
from helpers import NO_UPDATES, SMALL, TruthEnv, make, make_by_fours, space_envs
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_pwm import PWM
from sb3_pwm.datasets import from_replay_buffer

pytestmark = pytest.mark.filterwarnings("ignore:nothing was learnt")

NORMAL = NormalActionNoise(np.zeros(2), np.full(2, 0.5))
ORNSTEIN = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.5))


class Fixed(NormalActionNoise):
    """Noise 0.25, which has seen ``calls`` calls since it was reset."""

    calls = 0

    def __init__(self) -> None:
        super().__init__(np.zeros(2), np.zeros(2))

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full(2, 0.25, np.float32)

    def reset(self) -> None:
        self.calls = 0


def noises_of(model: PWM) -> list[Any]:
    noise = model.action_noise
    return noise.noises if isinstance(noise, VectorizedActionNoise) else [noise]


@pytest.mark.parametrize("after", [1, 2, 4, 5])
@pytest.mark.parametrize("before", [1, 4])
def test_noise_follows_the_number_of_environments(tmp_path: Path, before: int, after: int) -> None:
    """As it was given: every environment of the loaded model has a copy of its own."""
    make(space_envs(before), action_noise=ORNSTEIN).learn(40).save(tmp_path / "model")
    model = PWM.load(tmp_path / "model", env=space_envs(after))
    model.learn(40).learn(20, reset_num_timesteps=False)
    noises = noises_of(model)
    assert len(noises) == len(set(map(id, noises))) == after
    assert all(isinstance(noise, OrnsteinUhlenbeckActionNoise) for noise in noises)


def test_loaded_noise_is_added_in_every_environment(tmp_path: Path) -> None:
    make(space_envs(4), action_noise=Fixed()).learn(40).save(tmp_path / "model")
    stored = {}
    for noisy in (True, False):
        kwargs: dict[str, Any] = {} if noisy else {"action_noise": None}
        model = PWM.load(tmp_path / "model", env=space_envs(2), learning_starts=40, **kwargs)
        model.set_random_seed(0)
        stored[noisy] = model.learn(10).replay_buffer.actions[:5]
    np.testing.assert_allclose(stored[True], np.clip(stored[False] + 0.25, -1, 1), atol=1e-6)


def test_noise_starts_anew_where_an_episode_ends() -> None:
    model = make_by_fours(space_envs(2, length=7), action_noise=Fixed()).learn(12 * 2)
    assert [noise.calls for noise in noises_of(model)] == [5, 5]


def test_data_of_one_column_and_noise(tmp_path: Path) -> None:
    buffer: Any = make().learn(40).replay_buffer
    data = from_replay_buffer(buffer)
    kwargs: dict[str, Any] = {**SMALL, "action_noise": NORMAL}
    model = PWM.from_dataset(data, **{name: kwargs[name] for name in kwargs if name != "buffer_size"})
    model.learn_offline(2, pretrain_steps=1)
    model.set_env(space_envs())
    model.learn(20).save(tmp_path / "model")
    assert len(noises_of(PWM.load(tmp_path / "model", env=space_envs(4)).learn(40))) == 4


@pytest.mark.parametrize(("n_noises", "n_envs"), [(2, 1), (2, 3), (4, 2)])
def test_vectorized_noise_for_other_environments_is_refused(tmp_path: Path, n_noises: int, n_envs: int) -> None:
    noise = VectorizedActionNoise(NORMAL, n_noises)
    message = f"action_noise is for {n_noises} environments, the model has {n_envs}"
    with pytest.raises(ValueError, match=message):
        make(space_envs(n_envs), action_noise=noise)
    make(space_envs(n_envs)).save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        PWM.load(tmp_path / "model", action_noise=noise)
    with pytest.raises(ValueError, match=message):
        PWM.load(tmp_path / "model", env=space_envs(n_envs), action_noise=noise)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_vectorized_noise_that_fits_is_kept(n_envs: int) -> None:
    noise = VectorizedActionNoise(Fixed(), n_envs)
    model = make(space_envs(n_envs), action_noise=noise).learn(30)
    assert model.action_noise is noise


def truth_processes(n_envs: int = 2, kind: Callable[..., Any] = TruthEnv, start_method: str = "fork") -> SubprocVecEnv:
    return SubprocVecEnv([partial(kind, i) for i in range(n_envs)], start_method=start_method)


def end(process: Any, number: int = signal.SIGTERM) -> None:  # SIGINT may be ignored where tests run in the background
    os.kill(process.pid, number)
    process.join(10)


def interrupt_at(step: int, before: Callable[..., Any] = lambda: None) -> Callable[..., Any]:
    """A callback that stands for Ctrl-C."""

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= step:
            before()
            raise KeyboardInterrupt
        return True

    return callback


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("wrapper", [lambda env: env, partial(VecNormalize, norm_obs=False, norm_reward=False)])
def test_ctrl_c_that_also_ends_the_processes(tmp_path: Path, wrapper: Callable[..., Any], reset: bool) -> None:
    """As a terminal does it."""
    env = truth_processes()
    model = make_by_fours(wrapper(env))
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, interrupt_at(50, lambda: [end(process) for process in env.processes]))
    model.save(tmp_path / "model")
    PWM.load(tmp_path / "model")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"environment 0.* has ended.*make the environments anew.*set_env"):
            model.learn(20, reset_num_timesteps=reset)
    model.set_env(wrapper(truth_processes()))
    model.learn(40, reset_num_timesteps=reset)
    assert model.num_timesteps == (40 if reset else 90)
    assert false_steps(model.replay_buffer) == 0


class Mortal(TruthEnv):
    """Environment 1 ends its process in its 20th step."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.index == 1 and self.steps == 120:
            os._exit(3)
        return super().step(action)


def test_a_process_that_ends_by_itself() -> None:
    model = make(truth_processes(kind=Mortal, start_method="forkserver"))
    with pytest.raises(RuntimeError, match=r"environment 1.* has ended \(exit code 3\).*set_env"):
        model.learn(100)
    model.set_env(truth_processes())
    model.learn(40, reset_num_timesteps=False)
    assert false_steps(model.replay_buffer) == 0


def test_an_end_of_file_that_is_not_the_environments() -> None:
    def callback(*_: object) -> None:
        raise EOFError("of a file")

    with pytest.raises(EOFError, match="of a file"):
        make(truth_processes()).learn(20, callback)


class InterruptedPipe:
    """A pipe in which Ctrl-C comes while the answer number ``n`` is waited for."""

    def __init__(self, pipe: Any, n: int) -> None:
        self.pipe, self.n = pipe, n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def recv(self) -> Any:
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt
        return self.pipe.recv()


@pytest.mark.parametrize("answer", [1, 2, 3, 11])  # to what is asked before the reset, to the reset, to steps
@pytest.mark.parametrize("late", [0, 1, 2])
def test_answers_that_an_interrupt_left_in_the_pipes(late: int, answer: int) -> None:
    """Only this process is interrupted, as by a notebook; the environments' live on."""
    env = truth_processes(3)
    model = make(env, **NO_UPDATES)
    pipes = env.remotes
    env.remotes = tuple(InterruptedPipe(pipe, answer) if i == late else pipe for i, pipe in enumerate(pipes))
    with pytest.raises(KeyboardInterrupt):
        model.learn(90)
    env.remotes = pipes
    stored = model.replay_buffer.n_transitions
    model.learn(60, reset_num_timesteps=False)
    assert model.replay_buffer.n_transitions >= stored + 60
    assert false_steps(model.replay_buffer) == 0
    env.close()
