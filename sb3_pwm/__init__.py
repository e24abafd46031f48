"""PWM (Policy learning with large World Models) as a Stable-Baselines3-style algorithm.

Names are imported when they are first used: ``sb3-pwm --help`` needs neither torch nor SB3.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_pwm.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer
    from sb3_pwm.callbacks import ModelGapCallback, TaskLogCallback
    from sb3_pwm.multitask.envs import single_task_env, task_vec_env
    from sb3_pwm.multitask.tasks import Task, TaskSet
    from sb3_pwm.planning.planner import Planner, PlanningPWM
    from sb3_pwm.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PWMPolicy
    from sb3_pwm.pwm import PWM
    from sb3_pwm.replay.her import SequenceHerReplayBuffer
    from sb3_pwm.simulator.algorithms import SHAC, TrueDynamicsPWM

__version__ = "0.1.0"

__all__ = [
    "PWM",
    "SHAC",
    "CnnPolicy",
    "DictSequenceReplayBuffer",
    "MlpPolicy",
    "ModelGapCallback",
    "MultiInputPolicy",
    "PWMPolicy",
    "Planner",
    "PlanningPWM",
    "SequenceHerReplayBuffer",
    "SequenceReplayBuffer",
    "Task",
    "TaskLogCallback",
    "TaskSet",
    "TrueDynamicsPWM",
    "__version__",
    "single_task_env",
    "task_vec_env",
]

_MODULES = {
    "CnnPolicy": "sb3_pwm.policies",
    "DictSequenceReplayBuffer": "sb3_pwm.buffers",
    "MlpPolicy": "sb3_pwm.policies",
    "ModelGapCallback": "sb3_pwm.callbacks",
    "MultiInputPolicy": "sb3_pwm.policies",
    "PWM": "sb3_pwm.pwm",
    "PWMPolicy": "sb3_pwm.policies",
    "Planner": "sb3_pwm.planning.planner",
    "PlanningPWM": "sb3_pwm.planning.planner",
    "SHAC": "sb3_pwm.simulator.algorithms",
    "SequenceHerReplayBuffer": "sb3_pwm.replay.her",
    "SequenceReplayBuffer": "sb3_pwm.buffers",
    "Task": "sb3_pwm.multitask.tasks",
    "TaskLogCallback": "sb3_pwm.callbacks",
    "TaskSet": "sb3_pwm.multitask.tasks",
    "TrueDynamicsPWM": "sb3_pwm.simulator.algorithms",
    "single_task_env": "sb3_pwm.multitask.envs",
    "task_vec_env": "sb3_pwm.multitask.envs",
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
