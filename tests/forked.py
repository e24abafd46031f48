"""Workers as forks of the test process, which has imported everything: new ones take longer to start than to work."""

import importlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

FORK = multiprocessing.get_context("fork")


class ForkedWorker:
    """What ``sb3_pwm.benchmark.engines.start_worker`` returns, as far as engines use it."""

    def __init__(self, job: dict[str, Any]) -> None:
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        self.stdin: TextIO = os.fdopen(writing, "w")
        self.process = FORK.Process(target=_work, args=(job, reading, writing))
        self.process.start()
        os.close(reading)
        self.stdin.write(json.dumps(job) + "\n")
        self.stdin.flush()

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def _work(job: dict[str, Any], reading: int, writing: int) -> None:
    """Do what ``python -m MODULE`` does, with the standard streams of a worker."""
    os.close(writing)
    log = os.open(Path(job["folder"]) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for own, usual in ((reading, 0), (log, 1), (log, 2)):
        os.dup2(own, usual)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, mode) for i, mode in ((0, "r"), (1, "w"), (2, "w")))
    warnings.resetwarnings()
    main: Callable[[], None] = importlib.import_module(job["module"]).main
    main()
