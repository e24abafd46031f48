"""When and from what the scales of observations and rewards are taken.

Networks know only scaled observations and rewards: to them, a jump in the scales looks like a different environment.
So the scales move once in ``STATISTICS_INTERVAL`` steps. A buffer with fewer transitions than the scales stand for,
such as the new one of a loaded model, leaves them alone until it is full.
"""

from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.observations import at_steps
from sb3_pwm.policies import PWMPolicy

STATISTICS_INTERVAL = 1_000  # environment steps between refreshes
PREDICTABILITY_STEPS = 10_000  # from which it is taken how predictable each observation dimension is


def is_due(steps: int) -> bool:
    """Return whether the scales should be taken anew, this many environment steps after the last time."""
    return steps >= STATISTICS_INTERVAL


def take_scales(
    policy: PWMPolicy, buffer: SequenceReplayBuffer, normalizer: VecNormalize | None, *, weigh_observations: bool
) -> bool:
    """Take a policy's scales of observations and rewards from the replay buffer, if it holds enough.

    :param policy: the policy to change.
    :param buffer: what the scales are taken from.
    :param normalizer: ``VecNormalize`` of the environment, through which the policy sees what is stored.
    :param weigh_observations: take the weights of the observation head too.
    :return: whether they were taken.
    """
    size, capacity = buffer.n_transitions, buffer.buffer_size * buffer.n_envs
    if size < min(int(policy.statistics_size), capacity):
        return False
    tasks = None if policy.task_key is None else buffer.all_of(policy.task_key)
    observations, rewards = buffer.statistics_sample(normalizer, policy.n_tasks), buffer.all_rewards(normalizer)
    policy.set_statistics(observations, rewards, tasks)
    policy.statistics_size.fill_(size)
    if weigh_observations:
        take_weights(policy, buffer, normalizer)
    return True


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
