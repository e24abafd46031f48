"""Pytest plugin: PWM in SAC's place, for SB3's own tests."""

import stable_baselines3

from sb3_pwm import PWM

stable_baselines3.SAC = PWM  # type: ignore[assignment, misc]
