"""What a user sees of long work, and how its callbacks end."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from sb3_pwm.compute.live import LiveProgress


def say(message: str, shown: bool) -> None:
    """Print a message at once, if it is to be shown."""
    if shown:
        print(message, flush=True)


@contextmanager
def timed(what: str, shown: bool) -> Iterator[None]:
    """Print what begins, and then how long it took, if it is to be shown."""
    say(f"{what} ...", shown)
    start = time.perf_counter()
    yield
    say(f"... took {time.perf_counter() - start:.1f} seconds", shown)


def warn_that_nothing_was_learnt(n_steps: int, learning_starts: int, n_stored: int) -> None:
    """Warn after a run without an update.

    :param n_steps: environment steps of the run.
    :param learning_starts: steps that the replay buffer must hold before the first update.
    :param n_stored: steps that it holds.
    """
    warnings.warn(
        f"nothing was learnt in {n_steps} steps: the first update comes when the replay buffer holds "
        f"learning_starts={learning_starts}, over all environments; it holds {n_stored}, which count if you go on with "
        "learn(..., reset_num_timesteps=False)",
        stacklevel=3,
    )


def let_go(callback: BaseCallback) -> None:
    """Let a callback end with the training, however that ended."""
    close_progress_bars(callback)
    # SB3 keeps the callback itself among its locals, with the model: neither would be freed with the last reference.
    callback.locals.pop("callback", None)


def callbacks_in(callback: BaseCallback) -> Iterator[BaseCallback]:
    """Give a callback, or those in a list of callbacks."""
    if isinstance(callback, CallbackList):
        for own in callback.callbacks:
            yield from callbacks_in(own)
    else:
        yield callback


def live_progress(callback: BaseCallback) -> LiveProgress | None:
    """Return the callback that shows progress, if there is one."""
    return next((own for own in callbacks_in(callback) if isinstance(own, LiveProgress)), None)


def close_progress_bars(callback: BaseCallback) -> None:
    """Close the bars of training that did not end by itself.

    SB3 leaves them open, and then the thread that draws one can hold up the end of the interpreter for ever.
    """
    for own in callbacks_in(callback):
        if isinstance(own, LiveProgress):
            own.close()
        elif isinstance(own, ProgressBarCallback) and hasattr(own, "pbar"):
            own.pbar.close()
