"""The learner: one update of world model, actor and critics, from windows to optimizer steps."""

from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch

from sb3_pwm.imagination import imagine
from sb3_pwm.losses import (
    actor_loss,
    behaviour_loss,
    critic_loss,
    entropy_coefficient_loss,
    imagined_targets,
    replay_targets,
    state_values,
    world_model_loss,
)
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.precision import Precision, arithmetic, usable_precision
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.type_aliases import ImaginedRollout, Metrics, SequenceSamples
from sb3_pwm.updates import apply_gradients, encode_windows, minibatches, move_average, steps_of

MAX_GRAD_NORM = {"actor": 1.0, "critic": 100.0, "model": 20.0, "entropy": 100.0}  # the first three are the paper's
ACTOR_AVERAGE_DECAY = 0.99  # over about the last 100 updates
MAX_SKIPPED_UPDATES = 100  # of one network, in a row


class Trainable(Protocol):
    """What the learner reads, and the two counts it keeps; :class:`sb3_pwm.PWM` documents each."""

    policy: PWMPolicy
    device: torch.device
    precision: Precision
    horizon: int
    critic_updates: int
    critic_batch_size: int
    gamma: float
    td_lambda: float
    tau: float
    ent_coef: float | Literal["auto"]
    target_entropy: float | Literal["auto"]
    consistency_coef: float
    reward_coef: float
    termination_coef: float
    n_model_updates: int
    n_skipped_updates: int


class Learner:
    """Update the networks of a model's policy.

    :param model: the policy and the hyperparameters, read at every update.
    """

    def __init__(self, model: Trainable) -> None:
        self.model = model
        self.metrics: dict[str, tuple[torch.Tensor, int]] = {}
        self._precision = usable_precision(model.device, model.precision)
        self._consecutive_skips = dict.fromkeys(MAX_GRAD_NORM, 0)

    def pop_metrics(self) -> dict[str, float]:
        """Return the means of all metrics since the last call."""
        means = {name: float(total / count) for name, (total, count) in self.metrics.items()}
        self.metrics.clear()
        return means

    def update_model(self, samples: SequenceSamples) -> torch.Tensor:
        """Update the world model and return the windows' (T + 1, B, Z) latents, detached."""
        model = self.model.policy.world_model
        with self._arithmetic():
            first = encode_windows(model, steps_of(samples.observations, 0, 1))
            with torch.no_grad():
                following = encode_windows(model, steps_of(samples.observations, 1, None))
            loss, metrics = world_model_loss(
                model,
                samples,
                self.model.policy.reward_scale(samples.rewards),
                first[0],
                following,
                consistency_coef=self.model.consistency_coef,
                reward_coef=self.model.reward_coef,
                termination_coef=self.model.termination_coef,
            )
        self._apply("model", loss, model, metrics)
        self.model.n_model_updates += 1
        return torch.cat([first.detach(), following])

    def update_policy(self, samples: SequenceSamples, latents: torch.Tensor, *, bc_coef: float = 0.0) -> None:
        """Update the actor once, then the critics.

        :param samples: windows.
        :param latents: (T + 1, B, Z) their latents, detached.
        :param bc_coef: weight of the distance to the windows' actions in the actor's loss.
        """
        policy = self.model.policy
        with self._arithmetic():
            rollout = imagine(
                policy.world_model,
                policy.actor,
                latents[0],
                self.model.horizon,
                terminations=self.model.termination_coef > 0,
            )
            values = state_values(policy.critics, policy.actor, rollout.latents[-1], q_critic=policy.q_critic)
        weights = continuation_weights(rollout.continuations)
        returns = imagined_returns(rollout.rewards, weights, values, self.model.gamma)
        policy.return_scale.update(returns.detach())
        ent_coef = self._entropy_coefficient(rollout.log_probs, weights[:-1])
        loss, metrics = actor_loss(
            returns, rollout.log_probs, weights[:-1], policy.return_scale.scale, ent_coef=ent_coef
        )
        if bc_coef > 0:
            with self._arithmetic():
                behaviour = behaviour_loss(policy.actor, latents[:-1], samples)
            loss, metrics = loss + bc_coef * behaviour, metrics | {"behaviour_loss": behaviour.detach()}
        self._apply("actor", loss, policy.actor, metrics)
        move_average(policy.actor_average, policy.actor, ACTOR_AVERAGE_DECAY)
        if policy.q_critic:
            self._update_q_critics(samples, latents)
        else:
            self._update_v_critics(rollout)

    def _entropy_coefficient(self, log_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | float:
        """Return the weight of the entropy bonus, after an update if it is learnt."""
        if not isinstance(self.model.ent_coef, str):
            return self.model.ent_coef
        policy, target = self.model.policy, self.model.target_entropy
        if isinstance(target, str):
            target = -policy.actor.action_dim / 2
        coefficient = policy.entropy_coefficient
        loss, metrics = entropy_coefficient_loss(coefficient.log_ent_coef, log_probs, weights, target)
        self._apply("entropy", loss, coefficient, metrics)
        return coefficient.log_ent_coef.detach().exp()

    def _update_q_critics(self, samples: SequenceSamples, latents: torch.Tensor) -> None:
        policy = self.model.policy
        with self._arithmetic():
            targets = replay_targets(
                policy.critics_target,
                policy.actor,
                samples,
                policy.reward_scale(samples.rewards),
                latents[1:],
                gamma=self.model.gamma,
                td_lambda=self.model.td_lambda,
            )
        inputs = torch.cat([latents[:-1], samples.actions], -1).flatten(0, 1)
        self._fit_critics(inputs, targets.flatten(), samples.mask.flatten())

    def _update_v_critics(self, rollout: ImaginedRollout) -> None:
        with self._arithmetic():
            targets, weights = imagined_targets(
                self.model.policy.critics_target,
                rollout,
                gamma=self.model.gamma,
                td_lambda=self.model.td_lambda,
            )
        self._fit_critics(rollout.latents[:-1].detach().flatten(0, 1), targets.flatten(), weights.flatten())

    def _fit_critics(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Take ``critic_updates`` minibatch steps towards (N,) targets of (N, ...) inputs with (N,) weights."""
        policy = self.model.policy
        for rows in minibatches(len(inputs), self.model.critic_batch_size, self.model.critic_updates, inputs.device):
            with self._arithmetic():
                loss, metrics = critic_loss(policy.critics(inputs[rows]), targets[rows], weights[rows])
            self._apply("critic", loss, policy.critics, metrics)
            move_average(policy.critics_target, policy.critics, 1 - self.model.tau)

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self.model.device, self._precision)

    def _apply(self, name: str, loss: torch.Tensor, network: torch.nn.Module, metrics: Metrics) -> None:
        """Take an optimizer step, or skip it if it is not finite, and remember the metrics.

        :raises FloatingPointError: after ``MAX_SKIPPED_UPDATES`` skipped updates of one network in a row.
        """
        if apply_gradients(self.model.policy.optimizers[name], loss, network.parameters(), MAX_GRAD_NORM[name]):
            self._consecutive_skips[name] = 0
            for key, value in metrics.items():
                total, count = self.metrics.get(key, (torch.zeros_like(value), 0))
                self.metrics[key] = (total + value, count + 1)
            return
        self.model.n_skipped_updates += 1
        self._consecutive_skips[name] += 1
        if self._consecutive_skips[name] >= MAX_SKIPPED_UPDATES:
            raise FloatingPointError(
                f"{MAX_SKIPPED_UPDATES} updates in a row of the {name} had a loss or gradient that is not finite; "
                "its parameters are those of the last finite update"
            )
