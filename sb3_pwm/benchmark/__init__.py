"""Benchmarks: ``python -m sb3_pwm.benchmark.speed``."""
