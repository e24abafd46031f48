"""How well a model predicts, and whether it keeps what its critics promise."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_integer
from sb3_pwm.diagnostics.open_loop import open_loop_errors
from sb3_pwm.diagnostics.start_values import StartValues, run_episodes
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.replay.watched_env import OwnArrays

if TYPE_CHECKING:
    from sb3_pwm.pwm import PWM

NORMALIZER_STATISTICS = ("obs_rms", "ret_rms")
NORMALIZER_SETTINGS = ("norm_obs", "norm_obs_keys", "clip_obs", "norm_reward", "clip_reward", "epsilon")


def model_errors(
    policy: PWMPolicy, buffer: SequenceReplayBuffer, normalizer: VecNormalize | None, horizon: int, n_windows: int
) -> dict[str, np.ndarray]:
    """Measure how far ahead a world model predicts, best on episodes that it has not learnt from.

    :meth:`sb3_pwm.PWM.model_errors` takes any replay buffer with episodes of the model's spaces as its ``dataset``, see
    :mod:`sb3_pwm.datasets`; it is not changed.

    :param policy: holds the world model.
    :param buffer: episodes to predict.
    :param normalizer: ``VecNormalize`` through which the policy sees what is stored.
    :param horizon: number T of steps to look ahead.
    :param n_windows: number of windows, spread evenly over the data.
    :return: (T,) arrays of the errors 1 ... T steps ahead, see
        :func:`sb3_pwm.diagnostics.open_loop.open_loop_errors`: ``latent`` (1 is no better than predicting no change),
        ``reward`` (1 is no better than the mean) and ``termination`` (cross-entropy in nats).
    :raises TypeError: if the data set is not a replay buffer.
    :raises ValueError: if a number is out of range, the spaces differ or the data are shorter than ``horizon``.
    """
    check_integer("horizon", horizon, 1)
    check_integer("n_windows", n_windows, 1)
    if horizon > buffer.size():
        raise ValueError(f"horizon={horizon} is more than the {buffer.size()} steps of the data set")
    samples = policy.for_networks(buffer.spread_sequences(n_windows, horizon, normalizer))
    policy.set_training_mode(False)
    errors = open_loop_errors(policy.world_model, samples, policy.scaled_rewards(samples))
    return {name: values.cpu().numpy() for name, values in errors.items()}


def start_value(policy: PWMPolicy, observation: Any) -> float:
    """Return the mean of the critics' values of one observation, or dictionary of them."""
    tensor, _ = policy.obs_to_tensor(observation)
    return float(policy.predict_values(tensor).mean())


def evaluated_start_values(
    model: "PWM", env: VecEnv, normalizer: VecNormalize | None, n_episodes: int, deterministic: bool
) -> StartValues:
    """Run evaluation episodes beside what the critics promise.

    :param model: acts, and has the critics.
    :param env: environment to evaluate in, not the one that the model trains in. It needs a ``VecNormalize`` if that
        one has it, whose present statistics it takes over; its own do not move. Rewards are in training's units,
        discounted with ``gamma``; what a time-out cuts off is estimated by the critics.
    :param normalizer: the training environment's ``VecNormalize``.
    :param n_episodes: number of episodes, divided evenly among the environments.
    :param deterministic: act deterministically; the value is that of the stochastic policy.
    :return: start values and returns.
    :raises ValueError: if only one of the two environments has a ``VecNormalize``, or ``n_episodes`` is below 1.
    """
    check_integer("n_episodes", n_episodes, 1)
    tracker = StartValues(model.gamma, env.num_envs, n_episodes)
    with normalized_as_in_training(env, normalizer):
        run_episodes(
            tracker,
            lambda observation: start_value(model.policy, observation),
            OwnArrays(env),
            lambda observations: model.predict(observations, deterministic=deterministic)[0],
        )
    return tracker


def check_normalizer(env: GymEnv | VecEnv, training: VecNormalize | None) -> VecNormalize | None:
    """Return the ``VecNormalize`` of an evaluation environment, if there is one.

    :param env: environment to evaluate in.
    :param training: that of the environment that the model trains in.
    :raises ValueError: if there is only one of them: values and returns would have different units.
    """
    evaluation = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if training is not None and evaluation is None:
        raise ValueError(
            "env has no VecNormalize and the model's environment has one, so that the policy knows normalised "
            "observations and rewards only: wrap it, VecNormalize(env, training=False)"
        )
    if training is None and evaluation is not None:
        raise ValueError(
            "env has a VecNormalize and the model's environment has none, so that their units differ: leave it out, or "
            "give the model the environment with its statistics, load(path, env=env) or set_env(env)"
        )
    return evaluation


@contextmanager
def normalized_as_in_training(env: VecEnv, training: VecNormalize | None) -> Iterator[None]:
    """Normalise an evaluation environment's observations and rewards as the training environment does at present.

    As after SB3's ``EvalCallback``, the statistics stay; its own settings come back.

    :raises ValueError: see :func:`check_normalizer`.
    """
    evaluation = check_normalizer(env, training)
    if evaluation is None:
        yield
        return
    own, shared = vars(evaluation), vars(training)
    kept = {name: own[name] for name in ("training", *NORMALIZER_SETTINGS)}
    own.update({name: deepcopy(shared[name]) for name in NORMALIZER_STATISTICS + NORMALIZER_SETTINGS if name in shared})
    evaluation.training = False
    try:
        yield
    finally:
        own.update(kept)
