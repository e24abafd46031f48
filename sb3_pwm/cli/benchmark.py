"""Compare algorithms: environments x algorithms x seeds, each run in a separate process.

The same command again goes on where it was interrupted: finished runs are kept, the others start from their last
checkpoint. An example, two settings of PWM and SAC, two runs at a time:

    sb3-pwm benchmark --env Hopper-v5 --algo pwm wide=pwm sac --hyperparameters wide=wide.yml --jobs 2
"""

import argparse
import shlex
import sys
from pathlib import Path

from sb3_pwm.benchmark.engines import LocalEngine, RayEngine
from sb3_pwm.benchmark.results import FAILED, read_run, unfinished
from sb3_pwm.benchmark.runner import run_plan
from sb3_pwm.benchmark.specs import ALGORITHMS, named_algorithms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``sb3-pwm benchmark``."""
    add = parser.add_argument
    names = ", ".join(ALGORITHMS)
    add("--env", nargs="+", required=True, metavar="ID", help="Gymnasium ids (required)")
    add(
        "--algo",
        nargs="+",
        default=["pwm", "sac"],
        metavar="[LABEL=]NAME",
        help=f"{names}, or an import path mypkg:MyAlgo (default: pwm sac); a LABEL tells several settings of one apart",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the runs (default: 0 1 2)")
    add("--steps", type=int, default=100_000, help="environment steps of each run (default: %(default)s)")
    add("--out", type=Path, default=Path("results"), help="results folder (default: %(default)s)")
    add("--eval-every", type=int, default=10_000, help="environment steps between evaluations (default: %(default)s)")
    add("--eval-episodes", type=int, default=10, help="episodes per evaluation (default: %(default)s)")
    add(
        "--hyperparameters",
        action="append",
        default=[],
        metavar="[ALGO=]FILE",
        help="YAML in the RL Baselines3 Zoo's layout; ALGO is a label or a name, and may be left out if there is one "
        "(default: the Zoo's settings for SB3's algorithms, the constructor's defaults for others)",
    )
    engines = "where runs go: this machine, or a Ray cluster (default: %(default)s)"
    add("--engine", choices=["local", "ray"], default="local", help=engines)
    add("--jobs", type=int, default=1, help="runs at a time; with --engine ray, Ray decides (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of each run (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    every = "environment steps between checkpoints (default: %(default)s)"
    add("--checkpoint-every", type=int, default=25_000, help=every)


def own_files(given: list[str], algos: list[str]) -> dict[str, Path]:
    """Read ``--hyperparameters``.

    :param given: values of the form ``ALGO=FILE``, or ``FILE`` if there is one algorithm.
    :param algos: the algorithms as they are given.
    :return: file of each label or algorithm that has one.
    :raises ValueError: if it is not clear which algorithm a file is for, or there is no such file.
    """
    files: dict[str, Path] = {}
    for value in given:
        algo, equals, name = value.partition("=")
        if not equals or Path(value).is_file():
            name = value
            names = list(named_algorithms(algos))
            if len(names) > 1:
                raise ValueError(f"--hyperparameters {value}: for which of {names}? Write ALGO={value}")
            algo = names[0]
        files[algo] = Path(name)
        if not files[algo].is_file():
            raise ValueError(f"--hyperparameters {value}: there is no file {name}")
    return files


def run(options: argparse.Namespace) -> int:
    """Carry out ``sb3-pwm benchmark``.

    :return: exit code: 1 if a run failed.
    :raises ValueError: if an option is wrong, an algorithm cannot be made in an environment, or the results folder
        belongs to something else.
    """
    from sb3_pwm.benchmark.plan import make_plan  # here, so that --help need not wait for torch
    from sb3_pwm.benchmark.segments import check_models
    from sb3_pwm.checks import check_integer

    check_integer("jobs", options.jobs, 1)
    plan = make_plan(
        options.env,
        options.algo,
        options.seeds,
        steps=options.steps,
        eval_every=options.eval_every,
        eval_episodes=options.eval_episodes,
        checkpoint_every=options.checkpoint_every,
        threads=options.threads,
        device=options.device,
        hyperparameters=own_files(options.hyperparameters, options.algo),
    )
    check_models(unfinished(plan, options.out))
    command = shlex.join(["sb3-pwm", "benchmark", *options.arguments])
    engine = RayEngine if options.engine == "ray" else lambda: LocalEngine(options.jobs)
    try:
        failed = run_plan(plan, options.out, engine, command)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for spec, state in failed:
        folder = spec.folder(options.out)
        reason = read_run(folder).record["traceback"] if state == FAILED else f"{state}; its output is in log.txt"
        print(f"\n{folder}: {reason}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(plan)} runs did not finish; the same command tries them again", file=sys.stderr)
    return int(bool(failed))
