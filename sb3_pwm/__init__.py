"""PWM (Policy learning with large World Models) as a Stable-Baselines3-style algorithm."""

from sb3_pwm.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer
from sb3_pwm.callbacks import ModelGapCallback, TaskLogCallback
from sb3_pwm.multitask.envs import single_task_env, task_vec_env
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PWMPolicy
from sb3_pwm.pwm import PWM

__version__ = "0.1.0"

__all__ = [
    "PWM",
    "CnnPolicy",
    "DictSequenceReplayBuffer",
    "MlpPolicy",
    "ModelGapCallback",
    "MultiInputPolicy",
    "PWMPolicy",
    "SequenceReplayBuffer",
    "Task",
    "TaskLogCallback",
    "TaskSet",
    "__version__",
    "single_task_env",
    "task_vec_env",
]
