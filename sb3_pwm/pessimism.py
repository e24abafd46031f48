"""How pessimistic the critics' targets have to be, learnt from what the policy earns.

What the lowest critic is below their mean adds up over the steps that values look ahead. Where critics differ much,
values then lie far below the returns, and a policy may rather end an episode, whose value is known to be 0, than go on.
So pessimism falls while values promise less than what follows, and rises again when they promise more. It starts at 1,
because the values of a policy that has not learnt anything are too high. The newest steps of many environments look
less far ahead than those of one, so there it moves less.
"""

import math
from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from sb3_pwm.calibration import relative_gap
from sb3_pwm.losses import state_values
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.returns import lambda_returns
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.updates import at_steps

NEWEST_STEPS = 2_000  # from which it is learnt, over all environments
RATE = 0.2  # at most, per change
LOWEST = 0.5
BYTES_AT_ONCE = 2**25  # of observations


@torch.no_grad()
def promised_too_much(policy: PWMPolicy, steps: SequenceSamples, ends: torch.Tensor, gamma: float) -> float:
    """Compare the values of steps with the discounted returns that followed them.

    Both are means over all steps. What follows the newest step, and what a time-out cut off, is the critics' estimate.

    :param policy: the present policy.
    :param steps: windows of one step, see :meth:`sb3_pwm.buffers.SequenceReplayBuffer.newest_steps`.
    :param ends: (N, n_envs) ones where episodes ended.
    :param gamma: discount in (0, 1].
    :return: see :func:`sb3_pwm.calibration.relative_gap`.
    """
    values, next_values = torch.cat([_values(policy, part) for part in _parts(steps)], 1)
    rewards, terminations, next_values = (
        x.reshape(ends.shape) for x in (policy.scaled_rewards(steps), steps.terminations, next_values)
    )
    returns = lambda_returns(rewards, gamma * (1 - terminations), next_values, 1 - ends)
    return relative_gap(float(values.mean()), float(returns.mean()))


def _values(policy: PWMPolicy, steps: SequenceSamples) -> torch.Tensor:
    """Return the (2, B) values of recorded actions, or of states with V critics, and of the states that follow."""
    latents, following = (policy.world_model.encode(at_steps(steps.observations, i)) for i in range(2))
    inputs = (latents, steps.actions[0]) if policy.q_critic else (latents,)
    next_values = state_values(policy.critics, policy.actor, following, q_critic=policy.q_critic)
    return torch.stack([policy.critics(*inputs).mean(0), next_values])


def _parts(steps: SequenceSamples) -> Iterator[SequenceSamples]:
    """Divide windows into batches, so that pictures take bounded memory."""
    count = steps.actions.shape[1]
    size = sum(leaf.nbytes for leaf in pytree.tree_leaves(steps.observations))
    at_once = max(1, count * BYTES_AT_ONCE // size)
    for start in range(0, count, at_once):
        yield pytree.tree_map(lambda x, start=start: x[:, start : start + at_once], steps)


def moved_pessimism(pessimism: float, gap: float) -> float:
    r"""Return the pessimism after a change.

    .. math:: \beta \leftarrow \min(\max(\beta + 0.2\, (\bar Q - \bar G) / (|\bar Q| + |\bar G|),\ 0.5),\ 1)

    :param pessimism: the present one, :math:`\beta`.
    :param gap: what values promise too much, see :func:`promised_too_much`; NaN changes nothing.
    """
    return pessimism if math.isnan(gap) else min(max(pessimism + RATE * gap, LOWEST), 1.0)
