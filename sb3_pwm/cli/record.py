"""Record a saved model: a video of its episodes, or of what its world model imagines beside them.

An example, after ``sb3-pwm benchmark --out results``:

    sb3-pwm record results/Hopper-v5/pwm/0/model.zip --env Hopper-v5 --out hopper.mp4
"""

import argparse
import ast
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pwm.benchmark.plan import find_algorithm
from sb3_pwm.benchmark.specs import ALGORITHMS
from sb3_pwm.checks import check_integer, name_of
from sb3_pwm.files.models import load_normalizer
from sb3_pwm.pwm import PWM
from sb3_pwm.video import imagination_page, record_imagination, record_video, use_headless_rendering
from sb3_pwm.video.frames import PAGE_SUFFIX, check_video_path
from sb3_pwm.video.rendering import EnvFactory, make_env


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    names = ", ".join(ALGORITHMS)
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL.zip", help="file that model.save() wrote")
    parser.add_argument("--env", required=True, metavar="ID", help="id of a Gymnasium environment, or mymodule:ID")
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        default=(),
        metavar="NAME:VALUE",
        help="arguments of the environment, such as width:320 or camera_name:side",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="ends in .mp4 or .gif; with --imagined also in .html: a page with a slider",
    )
    parser.add_argument("--algo", default="pwm", help=f"{names}, or package:Class (default: pwm)")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="number of episodes (default: 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the environment")
    parser.add_argument("--max-steps", type=int, default=1_000, metavar="N", help="per episode (default: 1000)")
    parser.add_argument(
        "--vec-normalize",
        type=pathlib.Path,
        metavar="FILE",
        help="statistics that VecNormalize.save() wrote; a pickle runs code: only files that you trust",
    )
    parser.add_argument(
        "--imagined",
        type=int,
        metavar="H",
        help="show beside it what the world model predicts, started again from the truth every H steps",
    )


def run(args: argparse.Namespace) -> int:
    """Record; print the returns or, to stderr, what is wrong.

    :param args: as :func:`add_arguments` parses them.
    :return: exit code: 0, or 2 for bad input or where nothing can be rendered.
    """
    try:
        for name, low in (("episodes", 1), ("max_steps", 1), ("imagined", 1), ("seed", 0)):
            if getattr(args, name) is not None:
                check_integer(f"--{name.replace('_', '-')}", getattr(args, name), low)
        if args.out.suffix != PAGE_SUFFIX or args.imagined is None:
            check_video_path(args.out)
        use_headless_rendering()
        env = functools.partial(make_env, args.env, **env_arguments(args.env_kwargs))
        _record(load_model(args.model, args.algo, env, args.vec_normalize), env, args)
        print(args.out)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def env_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Read ``--env-kwargs``.

    :param given: of the form ``NAME:VALUE``; a value that is not a Python literal is text.
    :raises ValueError: if one has another form.
    """
    arguments: dict[str, Any] = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not (colon and name.isidentifier()):
            raise ValueError(f"--env-kwargs {text}: allowed: NAME:VALUE, such as width:320")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def _record(model: BaseAlgorithm, env: EnvFactory, args: argparse.Namespace) -> None:
    options = {"n_episodes": args.episodes, "seed": args.seed, "max_steps": args.max_steps}
    if args.imagined is None:
        for number, episode_return in enumerate(record_video(model, env, args.out, **options), 1):
            print(f"episode {number}: return {episode_return:.1f}")
        return
    if not isinstance(model, PWM):
        raise ValueError(f"--imagined needs a PWM, which has a world model; --algo {args.algo} has none")
    print("first a decoder learns to read observations from latents: a minute or more", file=sys.stderr)
    if args.out.suffix == PAGE_SUFFIX:
        if args.episodes > 1:
            raise ValueError(f"--episodes {args.episodes}: a page shows one rollout; allowed: 1, or a video as --out")
        steps = min(args.imagined, args.max_steps)
        rollout = imagination_page(model, env, args.out, horizon=steps, seed=args.seed)
        print(f"return {rollout.rewards.sum():.1f}, imagined {rollout.imagined_rewards.sum():.1f}")
    else:
        for number, episode in enumerate(record_imagination(model, env, args.out, horizon=args.imagined, **options), 1):
            print(
                f"episode {number}: return {episode.episode_return:.1f}, imagined {episode.imagined_return:.1f}, "
                f"model error {episode.errors.mean():.2f} standard deviations on average"
            )


def load_model(
    path: pathlib.Path, algo: str, env: EnvFactory, vec_normalize: pathlib.Path | None = None
) -> BaseAlgorithm:
    """Load a saved model.

    :param path: file that ``model.save()`` wrote.
    :param algo: see :func:`sb3_pwm.benchmark.plan.find_algorithm`.
    :param env: id, or function that makes the environment, for its statistics.
    :param vec_normalize: file that ``VecNormalize.save()`` wrote.
    :return: the model, with these statistics.
    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if the algorithm or environment is unknown, or a file holds something else.
    """
    kind = find_algorithm(algo)
    for file in (path, vec_normalize):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    normalizer = None
    if vec_normalize is not None:
        venv = DummyVecEnv([functools.partial(make_env, env)])
        normalizer = load_normalizer(vec_normalize, venv, name_of(venv.envs[0]))
        normalizer.training = False
    try:
        try:
            return kind.load(path, env=normalizer)
        except AssertionError:
            if normalizer is not None:
                raise
            # Algorithms with a HerReplayBuffer are loaded with an environment only.
            return kind.load(path, env=DummyVecEnv([functools.partial(make_env, env)]))
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        hint = "If another algorithm saved it, name that one: --algo sac, say"
        raise ValueError(f"{path} cannot be loaded as a {kind.__name__}: {error}. {hint}") from error
