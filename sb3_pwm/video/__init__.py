"""Record what a policy does, and what its world model imagines."""

from sb3_pwm.video.callback import RecordVideoCallback
from sb3_pwm.video.episodes import record_video
from sb3_pwm.video.frames import frame_strip, grid_video
from sb3_pwm.video.imagined import ImaginedEpisode, record_imagination
from sb3_pwm.video.rendering import use_headless_rendering

__all__ = [
    "ImaginedEpisode",
    "RecordVideoCallback",
    "frame_strip",
    "grid_video",
    "record_imagination",
    "record_video",
    "use_headless_rendering",
]
