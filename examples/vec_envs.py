"""Train PWM in several environments at once, and evaluate while it learns.

    python examples/vec_envs.py                     # about a minute on a CPU
    python examples/vec_envs.py --subprocesses      # a process per environment, for environments that are slow

``train_freq`` counts steps of *each* environment. Four environments with ``train_freq=1`` and ``gradient_steps=2`` so
have two updates for four environment steps, as one environment has with the defaults of 2 and 1.
"""

import argparse

import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_pwm import PWM


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--n-envs", type=int, default=4)
    parser.add_argument("--subprocesses", action="store_true")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps in total, at least 300")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)  # more gain little, and lose much on a busy machine
    kind = SubprocVecEnv if args.subprocesses else DummyVecEnv
    env = make_vec_env(args.env, args.n_envs, seed=args.seed, vec_env_cls=kind)
    warm_up = min(500, args.steps // 2)
    model = PWM(
        "MlpPolicy",
        env,
        train_freq=1,
        gradient_steps=2,
        learning_starts=warm_up,
        pretrain_steps=warm_up,
        seed=args.seed,
        device="cpu",
    )
    # Callbacks are called once per step of the vector, that is, once for n_envs environment steps.
    eval_freq = max(1, args.steps // (5 * args.n_envs))
    model.learn(args.steps, callback=EvalCallback(make_vec_env(args.env), n_eval_episodes=5, eval_freq=eval_freq))
    print(f"{model.num_timesteps} environment steps in {args.n_envs} environments")
    env.close()


if __name__ == "__main__":
    main()
