"""The command ``sb3-pwm``."""
