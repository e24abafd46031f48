"""A policy of many tasks that takes in one more."""

import re
from typing import Any

import torch

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.learner import Learner
from sb3_pwm.multitask.data import Source, task_of, task_set_with
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.nn.growth import Axes, Sizes, grow_optimizer, grow_state, named_pairs
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.type_aliases import SequenceSamples

COMPARED_WINDOWS = 1_000  # of the new task, by which its nearest one is found
NEW_SHARE = 0.5  # of the windows of an update that are the new task's; the others are replayed from all
LATENTS = ("latents", "embedding", "actions")  # a latent state: its own numbers, and the context


def checked_task_set(
    policy: PWMPolicy, buffer: SequenceReplayBuffer, name: str, source: Source, *, frozen: bool, has_noise: bool
) -> TaskSet:
    """Return a policy's task set with one task more, if the policy can take it in.

    :param policy: the policy.
    :param buffer: the replay buffer.
    :param name: name of the new task.
    :param source: its environment or data.
    :param frozen: whether the world model stays as it is.
    :param has_noise: whether the model has action noise, which is made for all tasks' actions.
    :return: the larger task set.
    :raises TypeError: if the policy has one task only, or :func:`sb3_pwm.multitask.data.task_set_with` says so.
    :raises ValueError: if the latter refuses the task, there are no data of a task to replay, or the action noise is of
        another size.
    """
    known = tasks_of(policy)
    task_set = task_set_with(known, name, source, may_grow=not frozen)
    if has_noise and task_set.action_size > known.action_size:
        raise ValueError(
            f"action_noise is for {known.action_size} actions, and task {name!r} makes them "
            f"{task_set.action_size}; set model.action_noise to None first"
        )
    missing = tasks_without_data(known, buffer)
    if missing and not frozen:
        raise ValueError(
            f"the replay buffer holds no data of {missing[:5]}, which are replayed so that the model does not forget "
            "them; call load_replay_buffer() first, or take freeze_world_model=True"
        )
    return task_set


def unfinished_task_set(policy: PWMPolicy, buffer: SequenceReplayBuffer, source: Source, *, frozen: bool) -> TaskSet:
    """Return the task set of a policy that has made some updates of its last task, if it can make the others.

    :param policy: the policy.
    :param buffer: the replay buffer.
    :param source: the last task's environment or data.
    :param frozen: whether the world model stays as it is.
    :return: the policy's task set.
    :raises TypeError: if the policy has one task only, or :func:`sb3_pwm.multitask.data.task_of` says so.
    :raises ValueError: if the source has other sizes than at first, or the replay buffer lacks data.
    """
    task_set = tasks_of(policy)
    known = task_set[-1]
    found = task_of(known.name, source)
    if (found.observation_size, found.action_size) != (known.observation_size, known.action_size):
        raise ValueError(
            f"task {known.name!r} was begun with {known.observation_size} observations and {known.action_size} "
            f"actions, and this source has {found.observation_size} and {found.action_size}; allowed: the same source"
        )
    missing = [name for name in tasks_without_data(task_set, buffer) if not frozen or name == known.name]
    if missing:
        raise ValueError(
            f"the replay buffer holds no data of {missing[:5]}; call load_replay_buffer() first, with the buffer that "
            f"the model had when task {known.name!r} was interrupted"
        )
    return task_set


def tasks_of(policy: PWMPolicy) -> TaskSet:
    """Return a policy's task set.

    :raises TypeError: if it has one task only.
    """
    if not isinstance(policy, MultiTaskPolicy):
        raise TypeError(f'add_task() needs a model with "MultiTaskPolicy", not {type(policy).__name__}')
    return policy.task_set


def tasks_without_data(task_set: TaskSet, buffer: SequenceReplayBuffer) -> list[str]:
    """Return the names of the tasks of which a padded buffer holds nothing."""
    known = set(buffer.all_of("task").tolist())
    return [name for number, name in enumerate(task_set.names) if number not in known]


def axes_of(policy: PWMPolicy) -> dict[str, Axes]:
    """Return what lies along the axes of the policy's tensors whose sizes depend on its tasks, by name."""
    actor = policy.actor.net
    steps = (*LATENTS, "actions")
    outputs = ("actions", "actions") if policy.state_dependent_std else ("actions",)
    first = {"actor.net.0.weight": (None, LATENTS)}
    last = {"actor.net.0.weight": (outputs, LATENTS)} if len(actor) == 1 else {}
    axes: dict[str, Axes] = {
        r"world_model\.features\.(mean|std)": (("tasks",), ("observations",)),
        r"world_model\.context\.embedding": (("tasks",), ("embedding",)),
        r"world_model\.context\.masks": (("tasks",), ("actions",)),
        r"world_model\.encoder\.0\.0\.weight": (None, ("observations", "embedding", "actions")),
        r"world_model\.(dynamics\.\d+|reward)\.0\.weight": (None, steps),
        r"world_model\.termination\.0\.weight": (None, LATENTS),
        r"world_model\.observation\.0\.weight": (("observations",), LATENTS),
        r"world_model\.(observation\.0\.bias|observation_weights)": (("observations",),),
        r"(.+\.)?latent_scale\.(mean|std)": (steps,),
        rf"actor\.net\.{len(actor) - 1}\.(weight|bias)": (outputs,),
        r"actor\.log_std": (("actions",),),
        r"critics(_target)?\.critics\.\d+\.0\.weight": (None, steps if policy.q_critic else LATENTS),
        r"behaviour_value\.critics\.0\.0\.weight": (None, LATENTS),
        r"(reward_scale\.scale|return_scale\.(variance|initialized)|entropy_coefficient\.log_ent_coef)": (("tasks",),),
    }
    named = {name: own for pattern, own in axes.items() for name in policy.state_dict() if re.fullmatch(pattern, name)}
    return named | first | last


def sizes_of(policy: PWMPolicy) -> Sizes:
    """Return how many entries each part of the policy's tensors has."""
    model = policy.world_model
    return {
        "tasks": policy.n_tasks,
        "observations": model.features_dim,
        "actions": model.action_dim,
        "latents": model.own_dim,
        "embedding": embedding_of(policy).shape[1],
    }


def take_over(former: PWMPolicy, policy: PWMPolicy) -> None:
    """Give a new policy all that a policy of fewer tasks has learnt, with the state of its optimizers.

    For the tasks that it had it is the same function: what is new has weights of 0 for them, or inputs of 0.

    :param former: policy of fewer tasks, observations or actions.
    :param policy: a new one of the same settings; it is changed.
    """
    axes, sizes = axes_of(former), (sizes_of(former), sizes_of(policy))
    policy.load_state_dict(grow_state(former.state_dict(), policy.state_dict(), axes, *sizes))
    pairs = named_pairs(former, policy, axes)
    for name, optimizer in former.optimizers.items():
        grow_optimizer(optimizer, policy.optimizers[name], pairs, *sizes)


def start_task(policy: PWMPolicy, learner: Learner, data: SequenceReplayBuffer, length: int) -> int:
    """Give the policy's last task its scales from its data, and the start values of its nearest task.

    The nearest task is the one with whose embedding the world model predicts the data best: with the lowest loss, the
    one that it learns by. Embedding and entropy coefficient start from those of this task.

    :param policy: the policy; it is changed.
    :param learner: its learner.
    :param data: the new task's data, padded.
    :param length: steps of a window.
    :return: number of the nearest task.
    """
    policy.set_statistics(data.statistics_sample(), data.all_rewards(), data.all_of(policy.task_key or ""))
    policy.statistics_size += data.n_transitions
    samples = policy.for_networks(data.spread_sequences(COMPARED_WINDOWS, length))
    embedding = embedding_of(policy)
    losses = []
    with torch.no_grad():
        for task in range(policy.n_tasks - 1):
            embedding[-1] = embedding[task]
            losses.append(float(learner.model_loss(samples)))
        nearest = min(range(len(losses)), key=losses.__getitem__)
        for values in (embedding, policy.entropy_coefficient.log_ent_coef):
            values[-1] = values[nearest]
    return nearest


def embedding_of(policy: PWMPolicy) -> torch.nn.Parameter:
    """Return the (n_tasks, E) embeddings of the policy's tasks."""
    context = policy.world_model.context
    if context is None:
        raise RuntimeError("the world model of a policy of many tasks has a context")
    return context.embedding


def mixed_windows(
    policy: PWMPolicy, buffer: SequenceReplayBuffer, data: SequenceReplayBuffer, batch_size: int, length: int
) -> SequenceSamples:
    """Draw windows of all tasks, ``NEW_SHARE`` of them, or more if there are fewer tasks, of the new one.

    :param policy: the policy.
    :param buffer: the data of all tasks, of which the new one has one column.
    :param data: the new task's data.
    :param batch_size: number of windows.
    :param length: steps of a window.
    :return: the windows, as the policy's networks take them.
    """
    share = 1 / buffer.n_envs
    own = round(batch_size * max(0.0, (NEW_SHARE - share) / (1 - share))) if share < 1 else 0
    samples = buffer.sample_sequences(batch_size - own, length)
    return policy.for_networks(joined(samples, data.sample_sequences(own, length)) if own else samples)


def joined(first: SequenceSamples, second: SequenceSamples) -> SequenceSamples:
    """Return the windows of two batches of Dict observations as one batch."""
    parts: Any = (first.observations, second.observations)
    observations = {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]}
    return SequenceSamples(observations, *(torch.cat(pair, 1) for pair in zip(first[1:], second[1:], strict=True)))
