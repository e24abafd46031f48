"""Benchmarks: ``python -m sb3_pwm.speed.measure``."""
