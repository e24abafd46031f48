"""From a suite of tasks to a policy for each, in four stages: collect, train, extract, evaluate.

Every stage leaves files with checksums in the output folder, and goes on where it was interrupted. Files of another
revision, of other settings or with another checksum are refused. Data are pickles, which run code: use only folders
that you trust.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark.engines import Job, LocalEngine, RayEngine, import_paths, run_jobs
from sb3_pwm.checks import check_integer
from sb3_pwm.files.atomic import write_text
from sb3_pwm.multitask.extraction import EXTRACTION_UPDATES
from sb3_pwm.offline import PRETRAIN_STEPS
from sb3_pwm.suites.records import is_finished, revision
from sb3_pwm.suites.stages import (
    CHECKPOINT_EVERY,
    EVALUATION,
    WORLD_MODEL,
    find_suite,
    folder_of,
    inputs_of,
)

HELP = {
    "collect": "store steps of every task: of scripted experts (Meta-World), else of PWM learning the task alone",
    "train": "train one world model on the data of all tasks",
    "extract": "extract a policy for each task",
    "evaluate": "evaluate the policies, print a table and write table.csv",
}
COLUMNS = ("return_mean", "return_std", "success_rate", "success_once_rate")
# Options of each stage that its files follow from, with the least value.
NUMBERS = {
    "collect": {"steps": 1},
    "train": {"updates": 0, "checkpoint_every": 1},
    "extract": {"updates": 0},
    "evaluate": {"episodes": 1},
}


def setting(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE, the value in JSON.

    :raises ValueError: if it is none.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    return name, json.loads(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stages of ``sb3-pwm suite`` and their options."""
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage, text in HELP.items():
        sub = stages.add_parser(stage, help=text, description=text)
        sub.add_argument("--suite", required=True, help="mt10, mt30, mt50, mt80, or module:function")
        sub.add_argument("--out", type=Path, default=Path("suite"), help="folder of all stages (default: %(default)s)")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--engine", choices=["local", "ray"], default="local")
        sub.add_argument("--jobs", type=int, default=1, help="tasks at a time; with --engine ray, Ray decides")
        sub.add_argument("--threads", type=int, default=1, help="CPU threads of each task")
        sub.add_argument("--device", default="cpu", help="torch device")
        if stage in ("collect", "train"):
            help_text = "constructor argument of PWM, may be repeated"
            sub.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=JSON", help=help_text)
        if stage == "collect":
            sub.add_argument("--steps", type=int, default=50_000, help="of each task (default: %(default)s)")
        if stage == "train":
            sub.add_argument("--updates", type=int, help=f"(default: {PRETRAIN_STEPS:,} for each task)")
            sub.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="(default: %(default)s)")
        if stage == "extract":
            sub.add_argument("--updates", type=int, default=EXTRACTION_UPDATES, help="of each (default: %(default)s)")
        if stage == "evaluate":
            sub.add_argument("--episodes", type=int, default=20, help="of each task (default: %(default)s)")


def make_jobs(options: argparse.Namespace, names: list[str]) -> list[Job]:
    """Return the jobs of a stage that have not finished.

    :param options: the command's.
    :param names: names of the units.
    :raises ValueError: if a stage before has not finished, or there are files that follow from something else.
    """
    out, now = options.out.resolve(), revision()
    settings = {name: getattr(options, name) for name in ("suite", "seed", *NUMBERS[options.stage])}
    if hasattr(options, "set"):
        settings["settings"] = dict(options.set)
    jobs = []
    for name in names:
        inputs = inputs_of(out, options.suite, options.stage, name, now)
        origin = {"stage": options.stage, "task": name, "revision": now, "inputs": inputs} | settings
        folder = folder_of(out, options.stage, name)
        if not is_finished(folder, origin):
            specification = {"stage": options.stage, "task": name, "threads": options.threads, "device": options.device}
            jobs.append(
                {
                    "module": "sb3_pwm.suites.stages",
                    "specification": specification,
                    "origin": origin,
                    "folder": str(folder),
                    "out": str(out),
                    "paths": import_paths(),
                }
            )
    return jobs


def run(options: argparse.Namespace) -> int:
    """Carry out ``sb3-pwm suite``.

    :return: exit code: 1 if a task failed.
    :raises ValueError: if an option is wrong, a stage before has not finished, or files follow from something else.
    """
    tasks = list(find_suite(options.suite).names)
    if options.stage == "train" and options.updates is None:
        options.updates = PRETRAIN_STEPS * len(tasks)
    for name, low in {"seed": 0, "jobs": 1, "threads": 1, **NUMBERS[options.stage]}.items():
        check_integer(name, getattr(options, name), low)
    names = [WORLD_MODEL] if options.stage == "train" else tasks
    jobs = make_jobs(options, names)
    print(f"{options.stage}: {len(names)} to do, {len(names) - len(jobs)} of them finished before", flush=True)
    try:
        failed = run_jobs(jobs, RayEngine() if options.engine == "ray" else LocalEngine(options.jobs)) if jobs else []
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    for job in failed:
        print(f"{job['specification']['task']} failed; see {job['folder']}/log.txt", file=sys.stderr)
    if options.stage == "evaluate" and not failed:
        show_table(options.out, tasks)
    return int(bool(failed))


def show_table(out: Path, tasks: list[str]) -> None:
    """Print what the evaluations found, and write it to ``table.csv``."""
    rows = {task: json.loads((folder_of(out, "evaluate", task) / EVALUATION).read_text()) for task in tasks}
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    values = {column: [row[column] for row in rows.values() if column in row] for column in columns}
    rows["mean"] = {column: sum(own) / len(own) for column, own in values.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", *columns])
    for task, row in rows.items():
        writer.writerow([task, *(f"{row[column]:.3f}" if column in row else "" for column in columns)])
        print(f"{task:32}", *(f"{column} {row[column]:9.3f}" for column in columns if column in row))
    write_text(out / "table.csv", text.getvalue())
