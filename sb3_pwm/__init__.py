"""PWM (Policy learning with large World Models) as a Stable-Baselines3-style algorithm."""

from sb3_pwm.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer
from sb3_pwm.callbacks import ModelGapCallback
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
    "__version__",
]
