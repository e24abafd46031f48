"""Ctrl-C at any moment: nothing that was finished is lost, and nothing false is learnt from."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import pytest
import stable_baselines3
from fault_toys import false_steps
from helpers import make, truth_envs
from stable_baselines3.common.vec_env import VecNormalize

import sb3_pwm
from sb3_pwm import PWM

FILES = {f"{sb3_pwm.__path__[0]}/{name}.py" for name in ("buffers", "sequence_algorithm", "pwm")}
FILES |= {
    f"{stable_baselines3.__path__[0]}/common/{name}.py"
    for name in ("buffers", "off_policy_algorithm", "base_class", "vec_env/vec_normalize", "vec_env/dummy_vec_env")
}


class InterruptedLine:
    """Raise Ctrl-C before the ``n``-th line that is run in ``FILES``; ``n`` is negative after that."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> Self:
        self.former = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.former)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.n -= 1
            if self.n == -1:
                raise KeyboardInterrupt
        return self.trace


def interrupted_anywhere(model: PWM, learn: Callable[[PWM], Any], lines: range) -> int:
    """Interrupt ``learn(model)`` once in each of the lines, and check the buffer at once and after learning on."""
    for n in lines:
        with InterruptedLine(n) as place:
            try:
                learn(model)
            except KeyboardInterrupt:
                pass
            else:
                assert place.n >= 0  # it was not swallowed
                return n
        assert false_steps(model.replay_buffer) == 0, n
        model.learn(6, reset_num_timesteps=n % 2 == 0)
        assert false_steps(model.replay_buffer) == 0, n
    return n


def collecting(n_envs: int, as_dict: bool, **kwargs: Any) -> PWM:
    env = truth_envs(n_envs, as_dict)
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    off: dict[str, Any] = {"pretrain_steps": 0, "gradient_steps": 0, "learning_starts": 0, "train_freq": 2}
    normalizer = VecNormalize(env, norm_obs=False, norm_reward=False)
    return make(normalizer, policy, **(off | kwargs))


KINDS = pytest.mark.parametrize(("n_envs", "as_dict"), [(1, False), (2, False), (2, True)])


def interrupted_while_storing(n_envs: int, as_dict: bool, *, full: bool, reset: bool, lines: range) -> None:
    model = collecting(n_envs, as_dict, buffer_size=14 if full else 100_000).learn(30)
    last = interrupted_anywhere(model, lambda model: model.learn(2 * n_envs, reset_num_timesteps=reset), lines)
    assert 200 < last < lines.stop - lines.step  # all lines


@KINDS
def test_interrupts_while_steps_are_stored(n_envs: int, as_dict: bool) -> None:
    reset = n_envs == 1
    interrupted_while_storing(n_envs, as_dict, full=not as_dict, reset=reset, lines=range(0, 5_000, 7))


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("full", [True, False])
@KINDS
def test_interrupts_in_every_line_while_steps_are_stored(n_envs: int, as_dict: bool, full: bool, reset: bool) -> None:
    interrupted_while_storing(n_envs, as_dict, full=full, reset=reset, lines=range(5_000))
