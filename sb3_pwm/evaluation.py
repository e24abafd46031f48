"""What a model knows about itself: how well it predicts, and whether it keeps what it promises."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pwm.calibration import StartValues, run_episodes
from sb3_pwm.checks import check_integer
from sb3_pwm.diagnostics import open_loop_errors
from sb3_pwm.scales import ScalingAlgorithm

NORMALIZER_STATISTICS = ("obs_rms", "ret_rms")
NORMALIZER_SETTINGS = ("norm_obs", "norm_obs_keys", "clip_obs", "norm_reward", "clip_reward", "epsilon")


class SelfEvaluatingAlgorithm(ScalingAlgorithm):
    """Algorithm with a world model and critics that can be compared with data and with an environment."""

    def model_errors(self, dataset: ReplayBuffer, horizon: int = 16, n_windows: int = 2_000) -> dict[str, np.ndarray]:
        """Measure how far ahead the world model predicts, best on episodes that it has not learnt from.

        :param dataset: replay buffer with episodes of the same spaces, see :mod:`sb3_pwm.datasets`; it is not changed.
        :param horizon: number T of steps to look ahead.
        :param n_windows: number of windows, spread evenly over the data.
        :return: (T,) arrays of the errors 1 ... T steps ahead, see
            :func:`sb3_pwm.diagnostics.open_loop_errors`: ``latent`` (1 is no better than predicting no change),
            ``reward`` (1 is no better than the mean) and ``termination`` (cross-entropy in nats).
        :raises TypeError: if ``dataset`` is no replay buffer.
        :raises ValueError: if a number is out of range, the spaces differ or the data are shorter than ``horizon``.
        """
        check_integer("horizon", horizon, 1)
        check_integer("n_windows", n_windows, 1)
        buffer = self._checked_buffer(dataset, "observation_space", "action_space")
        if horizon > buffer.size():
            raise ValueError(f"horizon={horizon} is more than the {buffer.size()} steps of the data set")
        buffer.device = self.device  # of an object of its own: the data set stays where it is
        samples = buffer.spread_sequences(n_windows, horizon, self._vec_normalize_env)
        samples = self.policy.without_padding(samples)
        self.policy.set_training_mode(False)
        rewards = self.policy.scaled_rewards(samples)
        errors = open_loop_errors(self.policy.world_model, samples, rewards)
        return {name: values.cpu().numpy() for name, values in errors.items()}

    def _start_value(self, observation: np.ndarray | dict[str, np.ndarray]) -> float:
        tensor, _ = self.policy.obs_to_tensor(observation)
        return float(self.policy.predict_values(tensor).mean())

    def value_calibration(self, env: GymEnv | VecEnv, n_episodes: int = 10, deterministic: bool = False) -> float:
        """Compare the critics' value of start states with the discounted returns of evaluation episodes.

        Both are in the units of the training environment's rewards and discounted with ``gamma``; what a time-out cuts
        off is estimated by the critics. The value is that of the stochastic policy.

        :param env: environment to evaluate in, not the one that the model trains in. It needs a ``VecNormalize`` if
            that one has it: it takes over the present statistics, and observations and rewards are normalised as in
            training, whatever its own ``norm_reward``; its statistics do not move.
        :param n_episodes: number of episodes, divided evenly among its environments.
        :param deterministic: act deterministically.
        :return: mean value over mean return; 1 is calibrated, above 1 the critics promise too much.
        :raises ValueError: if only one of the two environments has a ``VecNormalize``, or ``n_episodes`` is below 1.
        """
        return self._evaluated_start_values(env, n_episodes, deterministic).ratio

    def model_gap(self, env: GymEnv | VecEnv, n_episodes: int = 10) -> float:
        """Return how far the present policy's imagined return lies above its real one.

        Near 1, the policy exploits errors of the model: the world model and the critics promise what the environment
        does not give. See :attr:`sb3_pwm.calibration.StartValues.gap`; :class:`sb3_pwm.ModelGapCallback` watches it.

        :param env: environment to evaluate in, see :meth:`value_calibration`.
        :param n_episodes: number of episodes, with the stochastic policy.
        :return: gap in [-1, 1]; 0 is right.
        :raises ValueError: if only one of the two environments has a ``VecNormalize``, or ``n_episodes`` is below 1.
        """
        return self._evaluated_start_values(env, n_episodes, deterministic=False).gap

    def _evaluated_start_values(self, env: GymEnv | VecEnv, n_episodes: int, deterministic: bool) -> StartValues:
        check_integer("n_episodes", n_episodes, 1)
        vec_env = self._wrap_env(env, monitor_wrapper=False)
        tracker = StartValues(self.gamma, vec_env.num_envs, n_episodes)
        with normalized_as_in_training(vec_env, self._vec_normalize_env):
            run_episodes(tracker, self._start_value, vec_env, lambda x: self.predict(x, deterministic=deterministic)[0])
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
