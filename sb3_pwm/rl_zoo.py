"""PWM in the RL Baselines3 Zoo: its commands know ``--algo pwm``, also with ``-optimize``.

    python -m sb3_pwm.rl_zoo train --algo pwm --env Pendulum-v1
    python -m sb3_pwm.rl_zoo enjoy --algo pwm --env Pendulum-v1 -f logs

In a script ``import sb3_pwm.rl_zoo`` does the same for the Zoo's own functions. ``hyperparams`` are the constructor's
defaults everywhere: only the number of steps differs.
"""

import argparse
import runpy
import sys
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from sb3_pwm.extras import missing_extra
from sb3_pwm.networks import DEFAULT_NET_ARCH
from sb3_pwm.pwm import PWM

try:
    import rl_zoo3
    from rl_zoo3 import hyperparams_opt
except ImportError as error:
    raise missing_extra("sb3_pwm.rl_zoo", error.name, "rl-zoo") from error

COMMANDS = ("train", "enjoy", "record_video", "record_training", "push_to_hub", "load_from_hub")
STEPS = {"default": 100_000, "Pendulum-v1": 5_000, "InvertedPendulum-v5": 20_000}
hyperparams: dict[str, dict[str, Any]] = {
    env: {"n_timesteps": steps, "policy": "MlpPolicy"} for env, steps in STEPS.items()
}
WIDTHS = {"small": 96, "medium": 192, "big": 384}
LAST_RATE = 0.1  # of the learning rate, to which it falls


def sample_pwm_params(trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """Draw hyperparameters for one of Optuna's trials.

    :param trial: Optuna's trial.
    :param n_actions: not used.
    :param n_envs: not used.
    :param additional_args: what the Zoo says of hindsight replay.
    :return: arguments of :class:`sb3_pwm.PWM`.
    """
    sampled: dict[str, Any] = {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.002, 0.03, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "horizon": trial.suggest_int("horizon", 1, 8),
        "pessimism": trial.suggest_float("pessimism", 0.0, 1.0),
        "critic_updates": trial.suggest_int("critic_updates", 1, 4),
        "train_freq": trial.suggest_int("train_freq", 1, 4),
        "net_arch": trial.suggest_categorical("net_arch", list(WIDTHS)),
    }
    if additional_args["using_her_replay_buffer"]:
        sampled = hyperparams_opt.sample_her_params(trial, sampled, additional_args["her_kwargs"])
    return convert_pwm_params(sampled)


def convert_pwm_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of :class:`sb3_pwm.PWM` for the parameters of one of Optuna's trials."""
    converted = {name: value for name, value in sampled.items() if name not in ("one_minus_gamma", "net_arch")}
    rate, width = sampled["learning_rate"], WIDTHS[sampled["net_arch"]]
    return converted | {
        "gamma": 1 - sampled["one_minus_gamma"],
        "learning_rate": LinearSchedule(rate, LAST_RATE * rate, end_fraction=1.0),
        "policy_kwargs": {"net_arch": {name: [width] * len(sizes) for name, sizes in DEFAULT_NET_ARCH.items()}},
    }


def main(arguments: list[str]) -> None:
    """Run one of the Zoo's commands.

    :param arguments: its name, and its arguments; without a configuration file training has ``hyperparams``.
    """
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(f"usage: python -m sb3_pwm.rl_zoo {{{','.join(COMMANDS)}}} --algo pwm ...")
    command, *rest = arguments
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    if command == "train" and parser.parse_known_args(rest)[0].algo == "pwm":
        rest = ["--conf-file", "sb3_pwm.rl_zoo", *rest]  # in front: a file that the user names comes later, and counts
    sys.argv = [f"rl_zoo3.{command}", *rest]
    runpy.run_module(f"rl_zoo3.{command}", run_name="__main__", alter_sys=True)


rl_zoo3.ALGOS["pwm"] = PWM
hyperparams_opt.HYPERPARAMS_SAMPLER["pwm"] = sample_pwm_params
hyperparams_opt.HYPERPARAMS_CONVERTER["pwm"] = convert_pwm_params

if __name__ == "__main__":
    main(sys.argv[1:])
