"""Known multi-task suites: DMControl, Meta-World, and the two together.

Sizes are listed here, so that sets can be used without the simulators; making an environment needs the extra
``multitask``. ``python -m sb3_pwm.suites`` prints the tasks.

Importing this package registers the tasks of MT80 with Gymnasium, so that they can be used by id wherever an
environment can: ``gym.make("sb3_pwm.suites:mt80/cheetah-run-v0")``, ``"sb3_pwm.suites:mt80/mw-reach-v0"``.
"""

import gymnasium as gym

from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.suites.dmcontrol import mt30
from sb3_pwm.suites.metaworld import mt10, mt50


def mt80() -> TaskSet:
    """Return MT80: the tasks of :func:`mt30`, then those of :func:`mt50`, 39 observations and 6 actions at most."""
    return TaskSet([*mt30(), *mt50()])


def register_tasks() -> None:
    """Register the tasks of :func:`mt80` with Gymnasium as ``mt80/<task>-v0``, unless they are there."""
    for task in mt80():
        env_id = f"mt80/{task.name}-v0"
        if env_id not in gym.registry and task.env is not None:
            gym.register(env_id, task.env, max_episode_steps=task.episode_length)


register_tasks()

__all__ = ["mt10", "mt30", "mt50", "mt80"]
