"""Videos while a model learns."""

import pathlib
from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pwm.checks import check_integer
from sb3_pwm.compute.random_state import untouched_generators
from sb3_pwm.video.episodes import record_video
from sb3_pwm.video.frames import Path, check_video_path, timeline_video
from sb3_pwm.video.rendering import EnvFactory, check_spaces, render, rendered_env


class RecordVideoCallback(BaseCallback):
    """Record a video every so many steps, in an environment of its own; training goes on as it would without it.

    Files are called ``<name_prefix>_<steps>_steps.mp4``. With ``every_steps=None`` it records whenever it is called,
    which is on every new best model if it is ``callback_on_new_best`` of SB3's ``EvalCallback``. With ``timeline=True``
    ``<name_prefix>_timeline.mp4`` shows them one after the other when training ends.

    :param env: id, or function that makes a Gymnasium environment with ``render_mode="rgb_array"``.
    :param folder: for the videos; is created.
    :param every_steps: training steps, over all environments, between videos; or the steps at which to record, such as
        ``[1_000, 5_000, 20_000]``; None: at every call.
    :param n_episodes: episodes in a video.
    :param seed: of the environment, the same for every video.
    :param max_steps: end an episode after this many steps.
    :param deterministic: act deterministically.
    :param name_prefix: of the files.
    :param suffix: ``".mp4"`` or ``".gif"``.
    :param timeline: at the end, write one video of all that were recorded since training started.
    :param verbose: 1 prints every video's returns.
    :raises ValueError: if a number or the suffix is not allowed; when training starts, if the environment is not one
        that the model can act in.
    :raises RuntimeError: when training starts, if the environment cannot be rendered on this machine.
    :raises OSError: when training starts, if the folder cannot be made.
    """

    def __init__(
        self,
        env: EnvFactory,
        folder: Path,
        every_steps: int | Sequence[int] | None = None,
        *,
        n_episodes: int = 1,
        seed: int | None = None,
        max_steps: int = 1_000,
        deterministic: bool = True,
        name_prefix: str = "video",
        suffix: str = ".mp4",
        timeline: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if not (isinstance(env, str) or callable(env)):
            raise TypeError(
                f"env must be an id or a function that makes an environment, not {type(env).__name__}: each video has "
                "an environment of its own"
            )
        if isinstance(every_steps, Sequence) and not isinstance(every_steps, str):
            for number in every_steps:
                check_integer("every_steps", number, 1)
        elif every_steps is not None:
            check_integer("every_steps", every_steps, 1)
        check_integer("n_episodes", n_episodes, 1)
        check_integer("max_steps", max_steps, 1)
        check_video_path(f"{name_prefix}{suffix}")
        self.env = env
        self.folder = pathlib.Path(folder).expanduser()
        self.every_steps = every_steps
        self.n_episodes = n_episodes
        self.seed = seed
        self.max_steps = max_steps
        self.deterministic = deterministic
        self.name_prefix = name_prefix
        self.suffix = suffix
        self.timeline = timeline
        self._periods = 0
        self._recorded: list[tuple[str, Path]] = []

    def _init_callback(self) -> None:
        with untouched_generators(), rendered_env(self.env) as env:
            check_spaces(self.model, env)
            env.reset()
            render(env)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._periods = self._periods_until(self.model.num_timesteps)
        self._recorded = []

    def _periods_until(self, steps: int) -> int:
        """Return how many videos are due within the first steps of training."""
        if isinstance(self.every_steps, Sequence):
            return sum(number <= steps for number in set(self.every_steps))
        return steps // (self.every_steps or 1)

    def _on_step(self) -> bool:
        if self.every_steps is not None:
            periods = self._periods_until(self.num_timesteps)
            if periods == self._periods:
                return True
            self._periods = periods
        path = self.folder / f"{self.name_prefix}_{self.num_timesteps}_steps{self.suffix}"
        with untouched_generators():
            returns = record_video(
                self.model,
                self.env,
                path,
                n_episodes=self.n_episodes,
                seed=self.seed,
                max_steps=self.max_steps,
                deterministic=self.deterministic,
            )
        self._recorded.append((f"after {self.num_timesteps:,} steps", path))
        if self.verbose:
            print(f"{path}: return {', '.join(f'{value:.1f}' for value in returns)}")
        return True

    def _on_training_end(self) -> None:
        if self.timeline and self._recorded:
            timeline_video(self._recorded, self.folder / f"{self.name_prefix}_timeline{self.suffix}")
