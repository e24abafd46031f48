"""How far a job is, noted by its process for the table of the command that waits for it."""

import time
from collections.abc import Mapping
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pwm.benchmark.jobs import PROGRESS
from sb3_pwm.benchmark.results import write_json
from sb3_pwm.compute.live import LastLog

NOTE_SECONDS = 2.0  # between two notes
# What is shown of the log while a world model or a policy is trained, by its name there.
MODEL_FIGURES = {"train/world_model_loss": "model loss"}
POLICY_FIGURES = {"train/imagined_return": "imagined return"}


class Note:
    """Note how far a job is, but not at every step.

    :param folder: the job's folder.
    :param total: number of steps, of whatever kind.
    :param what: their name, in the plural.
    """

    def __init__(self, folder: Path, total: int, what: str) -> None:
        self.folder, self.total, self.what = folder, total, what
        self._first: tuple[int, float] | None = None
        self._noted = -float("inf")

    def __call__(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Note how many steps are done, and what is known so far."""
        now = time.perf_counter()
        if done < self.total and now - self._noted < NOTE_SECONDS:
            return
        self._noted = now
        first, start = self._first = self._first or (done, now)
        left = (self.total - done) * (now - start) / (done - first) if done > first else None
        noted = {"done": min(done, self.total), "total": self.total, "what": self.what}
        write_json(self.folder / PROGRESS, noted | {"seconds_left": left, "figures": dict(figures or {})})


class NoteSteps(BaseCallback):
    """Note the steps of a model that learns.

    :param note: notes them.
    :param figures: what is shown of the log: the name there, and the one that is shown.
    :param before: steps that were done before those that the model counts.
    """

    def __init__(self, note: Note, figures: Mapping[str, str], before: int = 0) -> None:
        super().__init__()
        self.note, self.figures, self.before = note, figures, before
        self.log = LastLog(tuple(figures))

    def _on_training_start(self) -> None:
        self.model.logger.output_formats.append(self.log)

    def _on_step(self) -> bool:
        self._note()
        return True

    def _note(self) -> None:
        known = {shown: self.log.values[name] for name, shown in self.figures.items() if name in self.log.values}
        self.note(self.before + self.num_timesteps, known)

    def _on_training_end(self) -> None:
        self.model.dump_logs()
        self._note()
        self.model.logger.output_formats.remove(self.log)
