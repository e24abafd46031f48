"""From a suite of tasks to a policy for each, in five stages: collect, train, extract, baselines, evaluate.

Every stage leaves files with checksums in the output folder, and goes on where it was interrupted. Files of another
revision, of other settings or with another checksum are refused. Data are pickles, which run code: use only folders
that you trust.
"""

import argparse
import csv
import functools
import io
import json
import sys
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark.engines import Job, LocalEngine, RayEngine, import_paths
from sb3_pwm.benchmark.jobs import Units, run_jobs, why
from sb3_pwm.checks import check_integer
from sb3_pwm.files.atomic import write_text
from sb3_pwm.multitask.extraction import EXTRACTION_UPDATES
from sb3_pwm.multitask.tasks import check_folder_names
from sb3_pwm.offline import PRETRAIN_STEPS
from sb3_pwm.presets import large
from sb3_pwm.suites.records import finished_files, is_finished, revision
from sb3_pwm.suites.stages import (
    BASELINES,
    CHECKPOINT_EVERY,
    EVALUATION,
    EXTRACTED,
    METHODS,
    SINGLE,
    WORLD_MODEL,
    Unit,
    find_suite,
    units_before,
    units_of,
)

HELP = {
    "collect": "store steps of every task: of scripted experts (Meta-World), else of PWM learning the task alone",
    "train": "train one world model on the data of all tasks",
    "extract": "extract a policy for each task",
    "baselines": "learn what to compare extracted policies with, from the same data, with as many updates: the prior, "
    "which follows the critics and imagines nothing; a world model and a policy of a single task; and the cloning of "
    "recorded actions",
    "evaluate": "evaluate the policies, print a table and write table.csv",
}
COLUMNS = ("return_mean", "return_std", "success_rate", "success_once_rate", "of_single", "ms_per_action")
SIZES: dict[str, dict[str, Any]] = {"small": {}, "large": large}  # PWM's arguments; small are its defaults
MOST_UPDATES = {"small": 100_000}  # by default: below 3 hours on a CPU with MT80
# Options of each stage that its files follow from, with the least value.
NUMBERS = {
    "collect": {"steps": 1},
    "train": {"updates": 0, "checkpoint_every": 1},
    "extract": {"updates": 0},
    "baselines": {},
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
            help_text = "PWM's own networks, for a CPU, or sb3_pwm.presets.large, for a GPU (default: %(default)s)"
            sub.add_argument("--size", choices=SIZES, default="small", help=help_text)
            default = f"{PRETRAIN_STEPS:,} for each task, but {MOST_UPDATES['small']:,} at most if small"
            sub.add_argument("--updates", type=int, help=f"(default: {default})")
            sub.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="(default: %(default)s)")
        if stage == "extract":
            sub.add_argument("--updates", type=int, default=EXTRACTION_UPDATES, help="of each (default: %(default)s)")
        if stage == "baselines":
            sub.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES), help="(default: all)")
        if stage == "evaluate":
            help_text = "policies; the planner uses model and critics of the prior (default: %(default)s)"
            sub.add_argument("--methods", nargs="+", choices=METHODS, default=[EXTRACTED], help=help_text)
            sub.add_argument("--episodes", type=int, default=20, help="of each task (default: %(default)s)")


def arguments_of(size: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return PWM's arguments: a size's, but for those that are given; each of ``policy_kwargs`` counts by itself."""
    arguments = SIZES[size] | given
    policy_kwargs = SIZES[size].get("policy_kwargs", {}) | given.get("policy_kwargs", {})
    return arguments | ({"policy_kwargs": policy_kwargs} if policy_kwargs else {})


def make_jobs(options: argparse.Namespace, units: list[Unit], tasks: list[str]) -> list[Job]:
    """Return the jobs of those units that have not finished.

    :param options: the command's.
    :param units: the stage's units.
    :param tasks: names of the suite's tasks.
    :raises ValueError: if a stage before has not finished, or there are files that follow from something else.
    """
    out, now = options.out.resolve(), revision()
    settings = {name: getattr(options, name) for name in ("suite", "seed", *NUMBERS[options.stage])}
    if hasattr(options, "set"):
        settings["settings"] = arguments_of(getattr(options, "size", "small"), dict(options.set))
    files = functools.cache(lambda unit: finished_files(out, unit.folder(out), options.suite, now))
    jobs = []
    for unit in units:
        inputs = {path: known for before in units_before(unit, tasks) for path, known in files(before).items()}
        origin = {**unit._asdict(), "revision": now, "inputs": inputs} | settings
        folder = unit.folder(out)
        if not is_finished(folder, origin):
            jobs.append(
                {
                    "module": "sb3_pwm.suites.stages",
                    "specification": unit._asdict() | {"threads": options.threads, "device": options.device},
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
    check_folder_names(tasks, taken=WORLD_MODEL)
    if options.stage == "train" and options.updates is None:
        wanted = PRETRAIN_STEPS * len(tasks)
        options.updates = min(wanted, MOST_UPDATES.get(options.size, wanted))
    for name, low in {"seed": 0, "jobs": 1, "threads": 1, **NUMBERS[options.stage]}.items():
        check_integer(name, getattr(options, name), low)
    methods = [name for name in METHODS if name in getattr(options, "methods", [])]  # each once, in this order
    units = units_of(options.stage, tasks, methods)
    jobs = make_jobs(options, units, tasks)
    print(f"{options.stage}: {len(units)} to do, {len(units) - len(jobs)} of them finished before", flush=True)
    board = board_of(options.out.resolve(), units, jobs)
    try:
        place = RayEngine() if options.engine == "ray" and jobs else LocalEngine(options.jobs)
        failed = run_jobs(jobs, place, board) if jobs else []
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    for job, state in failed:
        print(f"{job['specification']['task']}: {why(job, state)}", file=sys.stderr)
    if options.stage == "evaluate" and not failed:
        show_table(options.out, tasks, methods)
    return int(bool(failed))


def board_of(out: Path, units: list[Unit], jobs: list[Job]) -> Units:
    """Return what shows how far the units of a stage are."""
    has_methods = units[0].method is not None
    names = {str(unit.folder(out)): [unit.task] + has_methods * [str(unit.method)] for unit in units}
    return Units(["task"] + has_methods * ["method"], names, {job["folder"] for job in jobs})


def show_table(out: Path, tasks: list[str], methods: list[str]) -> None:
    """Print what the evaluations found, and write it to ``table.csv``: a row for each method of each task."""
    rows = table_rows(out, tasks, methods)
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "method", *columns])
    for (task, method), row in rows.items():
        writer.writerow([task, method, *(f"{row[column]:.3f}" if column in row else "" for column in columns)])
        print(f"{task:32} {method:10}", *(f"{column} {row[column]:9.3f}" for column in columns if column in row))
    write_text(out / "table.csv", text.getvalue())


def table_rows(out: Path, tasks: list[str], methods: list[str]) -> dict[tuple[str, str], dict[str, float]]:
    """Return what the evaluations found, by task and method, and at the end the means over the tasks.

    ``of_single`` is a return as a share of what learning the task alone gives; there is none where that is not
    positive.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for task in tasks:
        for method in methods:
            path = Unit("evaluate", task, method).folder(out) / EVALUATION
            rows[task, method] = json.loads(path.read_text(encoding="utf-8"))
        single = rows[task, SINGLE]["return_mean"] if SINGLE in methods else 0
        if single > 0:
            for method in methods:
                rows[task, method]["of_single"] = rows[task, method]["return_mean"] / single
    for method in methods:
        found = [rows[task, method] for task in tasks]
        values = {column: [row[column] for row in found if column in row] for column in COLUMNS}
        rows["mean", method] = {column: sum(own) / len(own) for column, own in values.items() if own}
    return rows
