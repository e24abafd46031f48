"""What machine this is, and how to leave its signals alone."""

import os
import pathlib
import platform


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_sigterm() -> None:
    """Let SIGTERM end this process also while an environment draws with pygame; an existing setting is respected.

    SDL, on which pygame builds, would catch the signal as the wish to close a window, which nobody reads.
    """
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
