"""Record what a policy does, and what its world model imagines."""

from sb3_pwm.video.callback import RecordVideoCallback
from sb3_pwm.video.episodes import record_video
from sb3_pwm.video.frames import frame_strip, grid_video, timeline_video
from sb3_pwm.video.imagined import ImaginedEpisode, record_imagination
from sb3_pwm.video.interactive import policy_page
from sb3_pwm.video.page import OpenLoopRollout, imagination_page
from sb3_pwm.video.rendering import use_headless_rendering

__all__ = [
    "ImaginedEpisode",
    "OpenLoopRollout",
    "RecordVideoCallback",
    "frame_strip",
    "grid_video",
    "imagination_page",
    "policy_page",
    "record_imagination",
    "record_video",
    "timeline_video",
    "use_headless_rendering",
]
