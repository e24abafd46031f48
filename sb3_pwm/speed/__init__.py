"""How fast updates are: ``python -m sb3_pwm.speed``."""
