"""Where runs take place: processes on this machine, or tasks on a Ray cluster. Both start the same process per run."""

import json
import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Protocol

from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.extras import missing_extra

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
POLL_SECONDS = 0.5
Job = dict[str, Any]


def make_job(spec: RunSpec, results: Path, command: str) -> Job:
    """Return what a worker is told, as JSON values."""
    return {
        "module": "sb3_pwm.benchmark.worker",
        "specification": spec.to_dict(),
        "folder": str(spec.folder(results.resolve())),
        "command": command,
        "paths": import_paths(),
    }


def import_paths() -> list[str]:
    """Return where this process finds modules besides the standard places, such as algorithms by import path."""
    installed = sysconfig.get_paths()
    standard = {*(installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages()}
    paths = [os.path.abspath(path) for path in sys.path]
    return [
        path
        for path in paths
        if os.path.exists(path) and not any(Path(path).is_relative_to(folder) for folder in standard)
    ]


def start_worker(job: Job) -> "subprocess.Popen[str]":
    """Start the process of one run; it ends when its standard input is closed, at the latest with this process."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(THREAD_VARIABLES, str(job["specification"]["threads"]))
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", job["module"]],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(job["paths"])},
        )
    if process.stdin is not None:
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died at once; its exit code says so
    return process


def run_worker(job: Job) -> int:
    """Start the process of one run and wait for it; return its exit code."""
    process = start_worker(job)
    try:
        return process.wait()
    finally:
        stop_worker(process)


def stop_worker(process: "subprocess.Popen[str]") -> None:
    """End a run's process; the run goes on from its checkpoint when it is asked for again."""
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


class Engine(Protocol):
    """A place for runs."""

    def has_room(self) -> bool:
        """Return whether another run can be started now."""
        ...

    def start(self, job: Job) -> None:
        """Start a run."""
        ...

    def poll(self) -> list[tuple[Job, int]]:
        """Return the runs that have ended since the last call, with their exit codes."""
        ...

    def stop(self) -> None:
        """End all runs."""
        ...


class LocalEngine:
    """Processes on this machine.

    :param jobs: number of processes at a time.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.running: list[tuple[Job, subprocess.Popen[str]]] = []

    def has_room(self) -> bool:
        """Return whether another run can be started now."""
        return len(self.running) < self.jobs

    def start(self, job: Job) -> None:
        """Start a run."""
        self.running.append((job, start_worker(job)))

    def poll(self) -> list[tuple[Job, int]]:
        """Return the runs that have ended since the last call, with their exit codes."""
        codes = [(job, process, process.poll()) for job, process in self.running]
        self.running = [(job, process) for job, process, code in codes if code is None]
        for _, process, code in codes:
            if code is not None:
                stop_worker(process)
        return [(job, code) for job, _, code in codes if code is not None]

    def stop(self) -> None:
        """End all runs."""
        for _, process in self.running:
            stop_worker(process)
        self.running = []


class RayEngine:
    """Tasks on the Ray cluster of ``RAY_ADDRESS``, or on a local Ray instance; all machines see the results folder.

    Ray places each run where as many CPUs as it has threads are free, and a GPU if its device is one.

    :raises ImportError: if ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("engine ray", "Ray", "ray") from error
        self.ray = ray
        self.started_here = not ray.is_initialized()
        if self.started_here:
            # Ray's default is a low priority, which falsifies wall times; a cluster has it where it is started.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(log_to_driver=False)
        self.running: list[tuple[Job, Any]] = []

    def has_room(self) -> bool:
        """Return True: Ray keeps what finds no room."""
        return True

    def start(self, job: Job) -> None:
        """Start a run."""
        gpus = int(job["specification"]["device"].startswith("cuda"))
        task = self.ray.remote(num_cpus=job["specification"]["threads"], num_gpus=gpus, max_retries=0)(run_worker)
        self.running.append((job, task.remote(job)))

    def poll(self) -> list[tuple[Job, int]]:
        """Return the runs that have ended since the last call, with their exit codes."""
        ended = []
        for job, reference in list(self.running):
            if self.ray.wait([reference], timeout=0)[0]:
                self.running.remove((job, reference))
                try:
                    ended.append((job, int(self.ray.get(reference))))
                except self.ray.exceptions.RayError:
                    ended.append((job, -1))  # the machine has gone
        return ended

    def stop(self) -> None:
        """End all runs."""
        for _, reference in self.running:
            self.ray.cancel(reference, force=True)
        self.running = []
        if self.started_here:
            self.ray.shutdown()
