"""What the suites' environments have in common: the check that a simulator is there, and repeated actions."""

import importlib
from importlib import metadata
from typing import Any, SupportsFloat

import gymnasium as gym

INSTALL = "make install-multitask (pip install -c constraints-multitask.txt '.[multitask]', in its own environment)"


def require(module: str) -> Any:
    """Import a simulator.

    :param module: name of the module, such as ``"dm_control.suite"``.
    :return: the module.
    :raises ImportError: if it is not installed, or MuJoCo is newer than it can work with.
    """
    package = module.split(".")[0]
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ImportError(f"this task needs {package}, of the extra 'multitask': {INSTALL}") from error
    mujoco = metadata.version("mujoco")
    if int(mujoco.split(".")[0]) >= 4:
        raise ImportError(f"{package} does not work with MuJoCo {mujoco}, it needs mujoco<4: {INSTALL}")
    return importlib.import_module(module)


def check_render_mode(render_mode: str | None) -> None:
    """Check a render mode.

    :raises ValueError: if it is not None or ``"rgb_array"``.
    """
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f'render_mode={render_mode!r}; allowed: None, "rgb_array"')


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Take each action several times, or until the episode ends, and add up the rewards.

    :param env: environment.
    :param repeat: number of times.
    """

    def __init__(self, env: gym.Env[Any, Any], repeat: int) -> None:
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Repeat a step; observation and info are those of the last one."""
        total = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info
