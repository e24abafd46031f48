"""When and from what the scales of observations and rewards are taken.

Networks know only scaled observations and rewards: to them, a jump in the scales looks like a different environment,
and a policy that balances may fall when its observations are taken for 5 % smaller. So networks are changed with the
scales, to go on computing the same. And the scales move only after as many steps as they stand for: when a growing
buffer has twice as many transitions, and when all of a full one are new.
A buffer with fewer transitions than the scales stand for, such as the new one of a loaded model, leaves them alone
until it is full.
"""

import torch
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.nn.layers import linear_layers
from sb3_pwm.nn.observation_features import ObservationFeatures
from sb3_pwm.nn.rescaling import change_of_units, put_out, take_inputs
from sb3_pwm.observations import at_steps
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.world_model import WorldModel

Units = tuple[torch.Tensor, torch.Tensor] | None  # means and units of features, where they are known

PREDICTABILITY_STEPS = 10_000  # from which it is taken how predictable each observation dimension is


def take_scales(
    policy: PWMPolicy,
    buffer: SequenceReplayBuffer,
    normalizer: VecNormalize | None,
    *,
    weigh_observations: bool,
    same_units: bool = False,
) -> bool:
    """Take a policy's scales of observations and rewards from the replay buffer, if it holds enough.

    :param policy: the policy to change.
    :param buffer: what the scales are taken from.
    :param normalizer: ``VecNormalize`` of the environment, through which the policy sees what is stored.
    :param weigh_observations: take the weights of the observation head too.
    :param same_units: the former scales are of the same observations and rewards: what networks compute from these is
        kept. Models of several tasks are not changed.
    :return: whether they were taken.
    """
    size, capacity = buffer.n_transitions, buffer.buffer_size * buffer.n_envs
    if size < min(int(policy.statistics_size), capacity):
        return False
    tasks = None if policy.task_key is None else buffer.all_of(policy.task_key)
    observations, rewards = buffer.statistics_sample(normalizer, policy.n_tasks), buffer.all_rewards(normalizer)
    features = policy.features
    keeps = same_units and policy.statistics_size > 0 and isinstance(features, ObservationFeatures)
    former = features.means_and_units() if keeps else None
    former_scale, was_known = policy.reward_scale.scale.clone(), policy.reward_scale.is_known
    policy.set_statistics(observations, rewards, tasks)
    if keeps:
        keep_what_is_seen(policy.world_model, former, features.means_and_units())
        # Before the first reward the scale was not a unit of anything.
        keep_what_is_promised(policy, torch.where(was_known, former_scale / policy.reward_scale.scale, 1.0))
    policy.statistics_size.fill_(size)
    if weigh_observations:
        take_weights(policy, buffer, normalizer)
    return True


def keep_what_is_seen(world_model: WorldModel, old: Units, new: Units) -> None:
    """Let encoder and observation head go on as they were, with features in new units."""
    if old is None or new is None or not isinstance(world_model, WorldModel):
        return
    factor, shift = change_of_units(old, new)
    take_inputs(linear_layers(world_model.encoder)[0], factor, shift)
    if world_model.observation is not None:
        put_out(linear_layers(world_model.observation)[-1], 1 / factor, -shift / factor)


def keep_what_is_promised(policy: PWMPolicy, ratio: torch.Tensor) -> None:
    """Let rewards, values and the weight of entropy stay what they were, in new reward scales.

    :param policy: the policy. A reward head of bins is left as it is.
    :param ratio: () old over new scale.
    """
    networks = [*policy.critics.critics, *policy.critics_target.critics]
    if policy.behaviour_value is not None:
        networks.extend(policy.behaviour_value.critics)
    if isinstance(policy.world_model, WorldModel) and not policy.reward_bins:
        networks.append(policy.world_model.reward)
    for network in networks:
        put_out(linear_layers(network)[-1], ratio)
    policy.return_scale.variance.mul_(ratio**2)
    with torch.no_grad():
        policy.entropy_coefficient.log_ent_coef.add_(ratio.log())


def take_weights(policy: PWMPolicy, buffer: SequenceReplayBuffer, normalizer: VecNormalize | None) -> None:
    """Take the weights of the observation head from the replay buffer; see :func:`take_scales`."""
    steps = buffer.spread_sequences(PREDICTABILITY_STEPS, 1, normalizer)
    observations, actions, *_ = policy.for_networks(steps)
    policy.world_model.weigh_observations(at_steps(observations, 0), actions[0], at_steps(observations, 1))


def n_known_transitions(buffer: SequenceReplayBuffer, normalizer: VecNormalize | None) -> int:
    """Return the number of stored transitions; fewer if a ``VecNormalize`` that still learns has seen fewer."""
    stored = buffer.n_transitions
    return stored if normalizer is None or not normalizer.training else min(stored, int(normalizer.ret_rms.count))


def check_normalizer_known(buffer: SequenceReplayBuffer, normalizer: VecNormalize | None, learning_starts: int) -> None:
    """Check that a ``VecNormalize`` knows the units of what is stored; ``learn`` lets it see more first.

    :raises ValueError: if it does not.
    """
    known, stored = n_known_transitions(buffer, normalizer), buffer.n_transitions
    if known < min(stored, max(1, learning_starts)):
        raise ValueError(
            f"the environment's VecNormalize has seen {known} steps, the replay buffer holds {stored}: it would "
            "clip them in units of its own; leave it out (a model has its own scales), or load its statistics, "
            "VecNormalize.load(path, venv)"
        )
