"""Action spaces that PWM takes, and how their discrete actions are coded."""

from typing import Any

import torch
from gymnasium import spaces

from sb3_pwm.checks import check_action_space
from sb3_pwm.nn.action_codes import ActionCodes

MOST_CATEGORIES = 10_000  # of all components together: codes, and layers that read them, are so wide


def action_codes(space: spaces.Space[Any]) -> ActionCodes | None:
    """Return how the actions of a space are coded; None for a Box, whose actions are numbers already.

    A bit of a MultiBinary is a component with two categories.

    :raises ValueError: if the space is nested, none that SB3's replay buffers hold, or too large for codes.
    """
    if isinstance(space, spaces.Box):
        return None
    if isinstance(space, spaces.Discrete):
        codes = ActionCodes((int(space.n),), (int(space.start),))
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        if len(space.shape) != 1:
            raise ValueError(
                f"action_space is {space}, with {len(space.shape)} axes; allowed: one. Flatten it to "
                f"{type(space).__name__} with one axis in a gymnasium.ActionWrapper, which reshapes what it gets"
            )
        if isinstance(space, spaces.MultiBinary):
            codes = ActionCodes((2,) * space.shape[0], (0,) * space.shape[0])
        else:
            codes = ActionCodes(tuple(map(int, space.nvec)), tuple(map(int, space.start)))
    else:
        raise ValueError(
            f"action_space is {space}; allowed: Box, Discrete, MultiDiscrete, MultiBinary. Put nested actions into one "
            "of these in a gymnasium.ActionWrapper: numbers into a Box, choices into a MultiDiscrete, and where there "
            "are both into a Box whose numbers the wrapper rounds to choices"
        )
    if codes.size > MOST_CATEGORIES:
        raise ValueError(
            f"action_space has {codes.size:,} discrete actions; allowed: {MOST_CATEGORIES:,} or fewer. Divide the "
            "choice into several smaller ones, MultiDiscrete, or into numbers, Box, in a gymnasium.ActionWrapper"
        )
    return codes


def check_actions(space: spaces.Space[Any]) -> None:
    """Check that PWM can learn to act in a space.

    :raises ValueError: see :func:`action_codes` and :func:`sb3_pwm.checks.check_action_space`.
    """
    if action_codes(space) is None:
        check_action_space(space)


def for_environment(actions: torch.Tensor, space: spaces.Space[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a policy's actions as SB3's loop does, to the last bit, but on their device.

    :param actions: (N, A) numbers in [-1, 1], or (N, *action_shape) integers of a discrete space.
    :param space: action space of the environment.
    :return: (N, *action_shape) actions for the environment, and for the replay buffer.
    """
    if not isinstance(space, spaces.Box):
        return actions, actions
    low, high = (torch.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))

    def rescaled(numbers: torch.Tensor) -> torch.Tensor:
        return low + (0.5 * (numbers + 1.0) * (high - low))

    # SB3 stores what it gets back from the actions in the environment's units; rounding may differ.
    scaled = 2.0 * ((rescaled(actions.reshape(-1, *space.shape)) - low) / (high - low)) - 1.0
    return rescaled(scaled), scaled
