"""SB3 callbacks for what a world model needs."""

import warnings
from typing import cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_pwm.checks import check_integer
from sb3_pwm.pwm import PWM

LARGE_GAP = 1 / 3  # twice the real return


class ModelGapCallback(BaseCallback):
    """Log ``eval/model_gap``, see :meth:`PWM.model_gap`, and warn when model and environment drift apart.

    It needs an environment to evaluate in, and is most useful beside :meth:`PWM.learn_offline`: there nothing corrects
    a policy that exploits its model.

    :param eval_env: environment to evaluate in, not the one that the model trains in.
    :param eval_freq: evaluate after every so many calls: policy updates offline, environment steps online (steps of
        each environment).
    :param n_eval_episodes: episodes per evaluation.
    :param verbose: 1 prints every gap.
    :raises ValueError: if a number is not positive.
    """

    def __init__(
        self, eval_env: GymEnv | VecEnv, eval_freq: int = 10_000, n_eval_episodes: int = 5, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integer("eval_freq", eval_freq, 1)
        check_integer("n_eval_episodes", n_eval_episodes, 1)
        self.eval_env = eval_env
        self.eval_freq = eval_freq
        self.n_eval_episodes = n_eval_episodes

    def _init_callback(self) -> None:
        if not isinstance(self.model, PWM):
            raise TypeError(f"ModelGapCallback is for PWM, not {type(self.model).__name__}")

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return True
        model = cast(PWM, self.model)
        if model.get_vec_normalize_env() is not None and isinstance(self.eval_env, VecEnv):
            sync_envs_normalization(self.training_env, self.eval_env)
        gap = model.model_gap(self.eval_env, self.n_eval_episodes)
        self.logger.record("eval/model_gap", gap)
        if self.verbose:
            print(f"num_timesteps={self.num_timesteps}, model_gap={gap:.2f}")
        if gap > LARGE_GAP:
            warnings.warn(
                f"eval/model_gap is {gap:.2f} at num_timesteps={self.num_timesteps}: the model promises the policy at "
                "least twice the return that it gets; it may be exploiting errors of the model",
                UserWarning,
                stacklevel=2,
            )
        return True
