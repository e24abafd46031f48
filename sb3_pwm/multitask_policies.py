"""Old path of :mod:`sb3_pwm.multitask.policies`: files of models hold their policy's class by it."""

from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy

__all__ = ["ExtractedPolicy", "MultiTaskPolicy"]
