"""Known multi-task suites: DMControl, Meta-World, and the two together.

Sizes are listed here, so that sets can be used without the simulators; making an environment needs the extra
``multitask``. ``python -m sb3_pwm.suites`` prints the tasks.
"""

from sb3_pwm.suites.dmcontrol import mt30
from sb3_pwm.suites.metaworld import mt10, mt50
from sb3_pwm.tasks import TaskSet


def mt80() -> TaskSet:
    """Return MT80: the tasks of :func:`mt30`, then those of :func:`mt50`, 39 observations and 6 actions at most."""
    return TaskSet([*mt30(), *mt50()])


__all__ = ["mt10", "mt30", "mt50", "mt80"]
