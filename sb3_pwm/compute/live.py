"""What a model does while it learns, in the terminal."""

import datetime
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.utils import safe_mean

from sb3_pwm.extras import missing_extra

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

N_LINES = 20  # of a run, where there is no terminal
HEADER = ("steps", "phase", "steps/s", "time left", "return")
LOGGED = {  # what is shown of the log, by its name there
    "train/value_calibration": "calibration",
    "train/critic_gap": "critic gap",
    "train/world_model_loss": "model loss",
}


class LastLog(KVWriter):
    """A destination of SB3's logger that keeps the last value of every number.

    :param names: starts of the names to keep.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.values: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: Mapping[str, Any], step: int = 0) -> None:
        """Take over what is logged."""
        for name, value in key_values.items():
            if name.startswith(self.names) and np.isscalar(value) and not isinstance(value, str):
                self.values[name] = float(value)  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing is open."""


class LiveProgress(BaseCallback):
    """Show a run's phase, speed, remaining time and return, and how right its critics and its world model are.

    In a terminal it is a bar that moves; elsewhere a header, and a line for every twentieth of the run. The return is a
    mean over the last training episodes; the rest is what was logged last.

    :param console: where to print; None for standard output.
    :raises ImportError: if rich is not installed.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        super().__init__()
        try:
            from rich.console import Console
        except ImportError as error:
            raise missing_extra("progress_bar=True", "rich", "extra") from error
        self.console = console or Console()
        self.log = LastLog(tuple(LOGGED))
        self._phase = ""
        self._display: Any = None

    def _on_training_start(self) -> None:
        self._first, self._total = self.num_timesteps, int(self.locals["total_timesteps"])
        self._start, self._lines = time.perf_counter(), 0
        self.model.logger.output_formats.append(self.log)
        if self.console.is_terminal:
            from rich.live import Live

            self._display = Live(get_renderable=self._rendered, console=self.console, refresh_per_second=4)
            self._display.start()
        else:
            self._print(HEADER + tuple(LOGGED.values()))

    def _on_step(self) -> bool:
        lines = N_LINES * (self.num_timesteps - self._first) // max(1, self._total - self._first)
        if self._display is None and lines > self._lines:
            self._lines = lines
            self._print_line()
        return True

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Draw for the last time; also after training that did not end by itself."""
        if self._display is not None:
            self._display.stop()
            self._display = None
        if self.log in self.model.logger.output_formats:
            self.model.logger.output_formats.remove(self.log)

    def track(self, updates: Iterable[int], name: str) -> Iterator[int]:
        """Give the updates of a phase between steps, and show how many there have been."""
        self._phase = name
        if self._display is None:
            self._print_line()
        try:
            for update in updates:
                self._phase = f"{name}, update {update + 1:,}"
                yield update
        finally:
            self._phase = ""

    def figures(self) -> dict[str, float]:
        """Return what is known, by its name: the return, and what was logged last."""
        episodes = self.model.ep_info_buffer or ()
        known = {"return": safe_mean([episode["r"] for episode in episodes])} if episodes else {}
        return known | {shown: self.log.values[name] for name, shown in LOGGED.items() if name in self.log.values}

    @property
    def _current_phase(self) -> str:
        return self._phase or ("learning" if getattr(self.model, "_n_updates", 0) else "collecting")

    def _speed(self) -> tuple[float, str]:
        """Return the steps per second so far, and the time that is left."""
        done, left = self.num_timesteps - self._first, self._total - self.num_timesteps
        speed = done / max(time.perf_counter() - self._start, 1e-9)
        return speed, str(datetime.timedelta(seconds=round(left / speed))) if speed > 0 else "?"

    def _rendered(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        speed, left = self._speed()
        row = Table.grid(padding=(0, 1))
        share = f"{self.num_timesteps:,} / {self._total:,}"
        bar = ProgressBar(self._total - self._first, self.num_timesteps - self._first, width=30)
        row.add_row(self._current_phase, bar, share, f"{speed:.0f} steps/s", f"{left} left")
        return Group(
            row, "  ".join(f"{name} {value:.4g}" for name, value in self.figures().items()) or "no episode yet"
        )

    def _print_line(self) -> None:
        figures, (speed, left) = self.figures(), self._speed()
        numbers = [f"{figures[name]:.4g}" if name in figures else "" for name in ("return", *LOGGED.values())]
        self._print((f"{self.num_timesteps:,}", self._current_phase, f"{speed:.0f}", left, *numbers))

    def _print(self, cells: tuple[str, ...]) -> None:
        line = "".join(f"  {cell:<12}" if number == 1 else f"{cell:>12}" for number, cell in enumerate(cells))
        self.console.print(line.rstrip(), highlight=False, soft_wrap=True)
