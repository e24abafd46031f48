"""Data sets as replay buffers: one importer per format, each gives a :class:`sb3_pwm.SequenceReplayBuffer`."""

from sb3_pwm.datasets.arrays import from_arrays, from_npz
from sb3_pwm.datasets.minari import from_minari
from sb3_pwm.datasets.sb3 import from_replay_buffer
from sb3_pwm.datasets.tasks import from_tasks
from sb3_pwm.datasets.tdmpc2 import from_tdmpc2

__all__ = ["from_arrays", "from_minari", "from_npz", "from_replay_buffer", "from_tasks", "from_tdmpc2"]
