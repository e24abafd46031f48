"""Where models saved by version 0.1.0.dev look for the policies that are now in :mod:`sb3_pwm.multitask.policies`."""

from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy

__all__ = ["ExtractedPolicy", "MultiTaskPolicy"]
