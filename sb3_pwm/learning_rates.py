"""Learning rates of several optimizers, each with a schedule of its own."""

import torch
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_pwm.policies import PWMPolicy
from sb3_pwm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_pwm.updates import set_learning_rate

ENTROPY_RATE = 4.0  # times the actor's: the coefficient must follow a policy that changes within hundreds of updates


class ScheduledAlgorithm(SequenceOffPolicyAlgorithm):
    """Algorithm with a learning rate for each of its policy's optimizers, where SB3 has one for all."""

    policy: PWMPolicy
    critic_learning_rate: float | Schedule | None
    model_learning_rate: float | Schedule | None

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        own = {"actor": None, "critic": self.critic_learning_rate, "model": self.model_learning_rate, "entropy": None}
        self._schedules = {name: None if rate is None else FloatSchedule(rate) for name, rate in own.items()}

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Set each optimizer's own rate; the argument is SB3's and names no rates, so it is not used."""
        for name in self._schedules:
            rate = self._set_learning_rate(name, self._current_progress_remaining)
            self.logger.record("train/learning_rate" if name == "actor" else f"train/{name}_learning_rate", rate)

    def _rate(self, name: str, progress_remaining: float) -> float:
        schedule = self._schedules[name] or self.lr_schedule  # which callbacks may replace
        return schedule(progress_remaining) * (ENTROPY_RATE if name == "entropy" else 1.0)

    def _set_learning_rate(self, name: str, progress_remaining: float) -> float:
        rate = self._rate(name, progress_remaining)
        set_learning_rate(self.policy.optimizers[name], rate, on_device=self.device.type == "cuda")
        return rate

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}_optimizer" for name in self._schedules)], []
