"""The updates of :class:`sb3_pwm.learner.Learner`, written down step by step as one would without a thought of speed.

It is what the fast updates are compared with, in their numbers and in their time: heads at every step instead of over
the whole rollout, gradients of every network that a loss passes through, PyTorch's default Adam, SimNorm over
neighbouring features as in the published code, PyTorch's own activations, and every loss read by the host. Float32 (or
float64) only.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from sb3_pwm.learner import MAX_GRAD_NORM
from sb3_pwm.networks import VALUE_UNIT
from sb3_pwm.nn.layers import Mish
from sb3_pwm.observations import at_steps
from sb3_pwm.pwm import PWM
from sb3_pwm.type_aliases import SequenceSamples


def neighbouring_simnorm(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """SimNorm whose groups are neighbouring features: for the same function, features are in another order."""
    return x.view(*x.shape[:-1], -1, group_size).softmax(-1).flatten(-2)


class PlainSimNorm(nn.Module):
    """SimNorm by a given function."""

    def __init__(self, group_size: int, simnorm: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__()
        self.group_size = group_size
        self.simnorm = simnorm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (..., Z) features."""
        return self.simnorm(x, self.group_size)


class ReferenceLearner:
    """A copy of a model's networks, and their updates.

    :param model: the model; it stays as it is.
    :param simnorm: SimNorm as a function of features and group size.
    """

    def __init__(self, model: PWM, simnorm: Callable[[torch.Tensor, int], torch.Tensor] = neighbouring_simnorm) -> None:
        self.model = model
        self.policy = copy.deepcopy(model.policy)
        world_model = self.policy.world_model
        world_model.simnorm = PlainSimNorm(world_model.simnorm.group_size, simnorm)  # type: ignore[assignment]
        world_model.encoder[-1] = world_model.simnorm
        for layers in [module for module in self.policy.modules() if isinstance(module, nn.Sequential)]:
            for i, layer in enumerate(layers):
                if isinstance(layer, Mish):
                    layers[i] = nn.Mish()
        self.networks: dict[str, nn.Module] = {
            "model": world_model,
            "actor": self.policy.actor,
            "critic": self.policy.critics,
            "entropy": self.policy.entropy_coefficient,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, network in self.networks.items():
            own = copy.deepcopy(model.policy.optimizers[name].state_dict())
            rate, betas = (own["param_groups"][0][key] for key in ("lr", "betas"))
            for state in own["state"].values():
                state["step"] = state["step"].cpu()  # where this Adam counts
            self.optimizers[name] = torch.optim.Adam(network.parameters(), lr=float(rate), betas=betas)
            groups = self.optimizers[name].state_dict()["param_groups"]
            self.optimizers[name].load_state_dict({"state": own["state"], "param_groups": groups})
        self.losses: dict[str, float] = {}

    def _step(self, name: str, loss: torch.Tensor) -> None:
        self.policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = list(self.networks[name].parameters())
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM[name])
        if bool(torch.isfinite(norm)) and bool(torch.isfinite(loss)):
            self.optimizers[name].step()
        self.losses[name] = loss.item()

    def update_model(self, samples: SequenceSamples) -> torch.Tensor:
        """Update the world model and return the windows' (T + 1, B, Z) latents."""
        model, world_model = self.model, self.policy.world_model
        length = len(samples.actions)
        encoded = [world_model.encode(at_steps(samples.observations, t)) for t in range(length + 1)]
        rewards = self.policy.reward_scale(samples.rewards)
        count = samples.mask.sum()
        latents, loss = encoded[0], torch.zeros(())
        observation_coef = world_model.observation_weight(model.observation_coef)
        if observation_coef > 0:
            loss = loss + observation_coef * self._observation_error(latents, samples, 0).sum() / count
        for t in range(length):
            predicted = world_model.next_latents(latents, samples.actions[t])
            error = model.consistency_coef * F.mse_loss(predicted, encoded[t + 1].detach(), reduction="none").mean(-1)
            error = error + model.reward_coef * world_model.reward_error(latents, samples.actions[t], rewards[t])
            ended = world_model.termination_error(predicted, samples.terminations[t])
            error = error + model.termination_coef * ended
            if observation_coef > 0:
                error = error + observation_coef * self._observation_error(predicted, samples, t + 1)
            loss = loss + (samples.mask[t] * error).sum() / count
            latents = predicted
        self._step("model", loss)
        return torch.stack(encoded).detach()

    def update_policy(
        self, samples: SequenceSamples, transitions: tuple[SequenceSamples, ...], latents: torch.Tensor
    ) -> None:
        """Update the actor once on windows and their (T + 1, B, Z) latents, then the critics."""
        model, policy, world_model = self.model, self.policy, self.policy.world_model
        policy.latent_scale.update(latents)
        z, noise = self._starts(latents, samples)
        weight, returns = torch.ones_like(z[:, 0]), torch.zeros(())
        states, rewards, continuations, weights, log_probs = [z], [], [], [weight], []
        for t in range(model.horizon):
            action, log_prob = policy.actor.sample_with_log_prob(z.detach())
            reward = world_model.rewards(z, action)
            returns = returns + model.gamma**t * weight * reward
            z = world_model.next_latents(z, action)
            if t == 0 and model.infer_noise:
                z = z + noise
            go_on = world_model.continuations(z) if model.termination_coef > 0 else torch.ones_like(weight)
            weight = weight * go_on
            states.append(z)
            rewards.append(reward)
            continuations.append(go_on)
            weights.append(weight)
            log_probs.append(log_prob)
        if policy.q_critic:
            action, log_prob = policy.actor.sample_with_log_prob(z.detach())
            values = policy.critics(z, action)
            log_probs.append(log_prob)
        else:
            values = policy.critics(z)
        returns = returns + model.gamma**model.horizon * weight * values.mean(0)
        policy.return_scale.update(returns.detach())
        before, densities = torch.stack(weights[: len(log_probs)]).detach(), torch.stack(log_probs)
        coefficient = model.ent_coef
        if isinstance(coefficient, str):
            entropy = -(before * densities.detach()).sum() / before.sum()
            target = -policy.actor.action_dim / 2 if isinstance(model.target_entropy, str) else model.target_entropy
            log_coefficient = policy.entropy_coefficient.log_ent_coef
            self._step("entropy", log_coefficient * (entropy - target))
            coefficient = log_coefficient.exp().item()
        bonus = -coefficient * (before * densities).mean()
        self._step("actor", -(returns.mean() + bonus) / policy.return_scale.scale)
        if policy.q_critic:
            for batch in transitions:
                inputs, targets = self._q_targets(batch)
                self._fit_once(inputs, targets, torch.ones_like(targets))
        else:
            self._fit(*self._v_targets(states, rewards, continuations, weights))

    def _starts(self, latents: torch.Tensor, samples: SequenceSamples) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents where rollouts start, and what the model misses in the steps recorded there."""
        length, count = samples.mask.shape
        places = [(t if samples.mask[t, b] > 0 else 0, b) for t in range(length) for b in range(count)]
        places = places[: self.model.actor_batch_size or count]
        starts = torch.stack([latents[place] for place in places])
        following = torch.stack([latents[t + 1, b] for t, b in places])
        with torch.no_grad():
            actions = torch.stack([samples.actions[place] for place in places])
            noise = following - self.policy.world_model.next_latents(starts, actions)
        return starts, noise

    def _q_targets(self, samples: SequenceSamples) -> tuple[torch.Tensor, torch.Tensor]:
        model, policy, count = self.model, self.policy, samples.mask.shape[1]
        with torch.no_grad():
            encoded = [
                policy.world_model.encode(at_steps(samples.observations, t)) for t in range(len(samples.mask) + 1)
            ]
            rewards = policy.reward_scale(samples.rewards)
            targets, last = torch.zeros_like(rewards[0]), encoded[0].clone()
            discounts = torch.ones_like(targets)
            for b in range(count):
                for t in range(int(samples.mask[:, b].sum())):
                    targets[b] += discounts[b] * rewards[t, b]
                    discounts[b] *= model.gamma * (1 - samples.terminations[t, b])
                    last[b] = encoded[t + 1][b]
            targets += discounts * self._value(policy.critics_target(last, policy.actor.sample(last)))
        return torch.cat([encoded[0], samples.actions[0]], -1), targets

    def _v_targets(
        self,
        states: list[torch.Tensor],
        rewards: list[torch.Tensor],
        continuations: list[torch.Tensor],
        weights: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model, horizon = self.model, self.model.horizon
        with torch.no_grad():
            values = [self._value(self.policy.critics_target(z)) for z in states[1:]]
            target, targets = values[-1], [torch.zeros(())] * horizon
            for t in reversed(range(horizon)):
                following = (1 - model.td_lambda) * values[t] + model.td_lambda * target
                target = targets[t] = rewards[t] + model.gamma * continuations[t] * following
        return (
            torch.stack(states[:-1]).detach().flatten(0, 1),
            torch.stack(targets).flatten(),
            torch.stack(weights[:-1]).detach().flatten(),
        )

    def _value(self, values: torch.Tensor) -> torch.Tensor:
        pessimism = self.model.pessimism
        return (1 - pessimism) * values.mean(0) + pessimism * values.amin(0)

    def _fit(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        model, rows = self.model, torch.randperm(len(inputs))
        while len(rows) < model.critic_updates * model.critic_batch_size:
            rows = torch.cat([rows, torch.randperm(len(inputs))])
        for i in range(model.critic_updates):
            chosen = rows[i * model.critic_batch_size : (i + 1) * model.critic_batch_size]
            self._fit_once(inputs[chosen], targets[chosen], weights[chosen])

    def _fit_once(self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        policy, tau = self.policy, self.model.tau
        seen, loss = policy.latent_scale(inputs), torch.zeros(())
        for critic in policy.critics.critics:
            error = F.mse_loss(VALUE_UNIT * critic(seen).squeeze(-1), targets, reduction="none")
            loss = loss + (weights * error).sum() / weights.sum()
        self._step("critic", loss)
        with torch.no_grad():
            for slow, fast in zip(policy.critics_target.parameters(), policy.critics.parameters(), strict=True):
                slow.copy_((1 - tau) * slow + tau * fast)

    def _observation_error(self, latents: torch.Tensor, samples: SequenceSamples, t: int) -> torch.Tensor:
        world_model = self.policy.world_model
        read = world_model.observation(latents)  # type: ignore[misc]
        features = world_model.features(at_steps(samples.observations, t))
        return F.mse_loss(read, features, reduction="none") @ world_model.observation_weights
