"""``python -m sb3_pwm.speed`` measures the updates."""

from sb3_pwm.speed.measure import main

if __name__ == "__main__":
    main()
