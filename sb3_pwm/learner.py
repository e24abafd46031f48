"""The learner: one update of world model, actor and critics, from windows to optimizer steps."""

import weakref
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch

from sb3_pwm.compute.compilation import Acceleration, TorchCompile, captured, compiled
from sb3_pwm.compute.distributed import share_of_weight
from sb3_pwm.compute.metrics import RunningMeans, SkipCounter
from sb3_pwm.compute.optimizers import apply_gradients, move_average
from sb3_pwm.compute.precision import PrecisionChoice, arithmetic, faster_precision, usable_precision
from sb3_pwm.imagination import imagine, inferred_noise, rollout_starts
from sb3_pwm.losses import (
    actor_loss,
    behaviour_loss,
    critic_loss,
    entropy_coefficient_loss,
    imagined_targets,
    relative_size,
    replay_targets,
    state_values,
    world_model_loss,
)
from sb3_pwm.observations import at_steps, ends_of_windows, to_each_step
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.type_aliases import ImaginedRollout, Metrics, SequenceSamples
from sb3_pwm.world_model import WorldModel, encode_windows

MAX_GRAD_NORM = {"actor": 1.0, "critic": 100.0, "model": 20.0, "entropy": 100.0}  # the first three are the paper's
MAX_SKIPPED_UPDATES = 100  # of one network, in a row


class Trainable(Protocol):
    """What the learner reads, and the count it keeps; :class:`sb3_pwm.PWM` documents each."""

    policy: PWMPolicy
    device: torch.device
    precision: PrecisionChoice
    torch_compile: TorchCompile
    actor_batch_size: int | None
    horizon: int
    infer_noise: bool
    critic_updates: int
    critic_batch_size: int
    gamma: float
    td_lambda: float
    pessimism: float
    tau: float
    ent_coef: float | str
    target_entropy: float | Literal["auto"]
    consistency_coef: float
    reward_coef: float
    termination_coef: float
    observation_coef: float | Literal["auto"]
    n_skipped_updates: int


class Learner:
    """Update the networks of a model's policy.

    An update is a function of tensors and reads nothing on the host, so that a CUDA graph can hold it.

    :param model: the policy and the hyperparameters, read at every update; for good by the first ones if updates are
        captured or compiled.
    """

    def __init__(self, model: Trainable) -> None:
        self._model = weakref.ref(model)  # the model owns its learner: the other way round, neither would be freed
        if model.precision == "auto":
            self._precision = faster_precision(model.device, self._value_and_differentiate)
        else:
            self._precision = usable_precision(model.device, model.precision)
        networks = {
            "actor": model.policy.actor,
            "critic": model.policy.all_critics,
            "model": model.policy.world_model,
            "entropy": model.policy.entropy_coefficient,
            "averaged": model.policy.critics,
            "target": model.policy.critics_target,
        }
        # Lists, because walking through the modules at every step costs more than a small operation.
        self._parameters = {name: list(network.parameters()) for name, network in networks.items()}
        self.acceleration = Acceleration(model.device, model.torch_compile, model.policy.optimizers)
        self.observation_coef = model.policy.world_model.observation_weight(model.observation_coef)
        self._metrics = RunningMeans()
        self._skips = SkipCounter(list(MAX_GRAD_NORM), MAX_SKIPPED_UPDATES, model.device)
        self._updates_since_look = 0

    @property
    def model(self) -> Trainable:
        """The policy and the hyperparameters."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this learner has been deleted")
        return model

    def _value_and_differentiate(self) -> None:
        """Do what an update does many times, without an effect: for measuring how long it takes."""
        policy = self.model.policy
        rows = self.model.critic_batch_size, policy.world_model.latent_dim + policy.actor.action_dim * policy.q_critic
        values = policy.critics(torch.zeros(rows, device=self.model.device))
        torch.autograd.grad(values.sum(), list(policy.critics.parameters()))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=weakref.ref(state["_model"]))

    def pop_metrics(self) -> dict[str, float]:
        """Return the means of all metrics since the last call."""
        self.count_skips()
        return self._metrics.pop()

    def count_skips(self) -> None:
        """Add updates that were skipped to the model's count; this waits for the device.

        :raises FloatingPointError: after ``MAX_SKIPPED_UPDATES`` skipped updates of one network in a row.
        """
        self._updates_since_look = 0
        count, stuck = self._skips.pop()
        self.model.n_skipped_updates += count
        if stuck is not None:
            raise FloatingPointError(
                f"{MAX_SKIPPED_UPDATES} updates in a row of the {stuck} had a loss or gradient that is not finite; "
                "its parameters are those of the last finite update"
            )

    def after_update(self) -> None:
        """Count skipped updates: at once where this costs nothing, else now and then."""
        self._updates_since_look += 1
        if self.model.device.type == "cpu" or self._updates_since_look >= MAX_SKIPPED_UPDATES:
            self.count_skips()

    @captured
    def update_model(self, samples: SequenceSamples, *, n_processes: int = 1) -> torch.Tensor:
        """Update the world model and return the windows' (T + 1, B, Z) latents, detached.

        :param samples: windows.
        :param n_processes: number of processes that do the same with windows of their own; all take the same step.
        :raises ValueError: if the policy has true dynamics, which are not learnt.
        """
        if not isinstance(self.model.policy.world_model, WorldModel):
            raise ValueError("there is no world model: load what was made by TrueDynamicsPWM or SHAC with that class")
        loss, metrics, latents = self._model_objective(samples)
        if n_processes > 1:
            loss = loss * share_of_weight(samples.mask)
        self._apply("model", loss, metrics, average=n_processes > 1)
        return latents

    @torch.no_grad()
    def model_loss(self, samples: SequenceSamples) -> torch.Tensor:
        """Return the world model's () loss on windows."""
        return self._model_objective(samples)[0]

    def update_embedding(self, samples: SequenceSamples, optimizer: torch.optim.Optimizer) -> None:
        """Update the embeddings of tasks alone, by the world model's loss.

        :param samples: windows; the embeddings of other tasks than theirs get gradients of 0.
        :param optimizer: holds the embeddings.
        """
        loss, metrics, _ = self._model_objective(samples)
        embeddings = optimizer.param_groups[0]["params"]
        finite = apply_gradients(optimizer, loss, embeddings, MAX_GRAD_NORM["model"])
        self._metrics.add(metrics, finite)
        self._skips.add("model", finite)
        self.after_update()

    @compiled
    def _model_objective(self, samples: SequenceSamples) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
        """Return the world model's loss, metrics, and the windows' latents."""
        model = self.model.policy.world_model
        with self._arithmetic():
            first = encode_windows(model, at_steps(samples.observations, slice(1)))
            with torch.no_grad():
                following = encode_windows(model, at_steps(samples.observations, slice(1, None)))
                reads = self.observation_coef > 0
                features = to_each_step(model.features, samples.observations) if reads else None
            loss, metrics = world_model_loss(
                model,
                samples,
                self.model.policy.scaled_rewards(samples),
                first[0],
                following,
                features,
                consistency_coef=self.model.consistency_coef,
                reward_coef=self.model.reward_coef,
                termination_coef=self.model.termination_coef,
                observation_coef=self.observation_coef,
            )
        return loss, metrics, torch.cat([first.detach(), following])

    @compiled
    def _imagined(
        self, latents: torch.Tensor, actions: torch.Tensor, following: torch.Tensor
    ) -> tuple[ImaginedRollout, torch.Tensor, torch.Tensor]:
        """Return imagined rollouts from (B, Z) latents, their (H + 1, B) weights and (B,) returns.

        Recorded (B, A) actions led from there to the following (B, Z) latents. With Q critics the rollouts hold the
        log-density of one action more, that of the last state.
        """
        policy = self.model.policy
        infers = self.model.infer_noise and self.model.horizon > 0
        with self._arithmetic():
            rollout = imagine(
                policy.world_model,
                policy.actor,
                latents,
                self.model.horizon,
                noise=inferred_noise(policy.world_model, latents, actions, following) if infers else None,
                terminations=self.model.termination_coef > 0,
                through_observations=policy.through_observations,
            )
            last = rollout.latents[-1]
            values, log_probs = state_values(policy.critics, policy.actor, last, q_critic=policy.q_critic)
        if log_probs is not None:
            rollout = rollout._replace(log_probs=torch.cat([rollout.log_probs, log_probs[None]]))
        weights = continuation_weights(rollout.continuations)
        return rollout, weights, imagined_returns(rollout.rewards, weights, values, self.model.gamma)

    @captured
    def update_policy(
        self,
        samples: SequenceSamples,
        transitions: tuple[SequenceSamples, ...],
        latents: torch.Tensor | None = None,
        *,
        bc_coef: float = 0.0,
    ) -> None:
        """Update the actor once, then the critics.

        :param samples: windows, at whose steps the actor's rollouts start, see
            :func:`sb3_pwm.imagination.rollout_starts`.
        :param transitions: a batch of windows of ``n_steps`` steps for each update of Q critics; none for V critics.
        :param latents: (T + 1, B, Z) their latents, detached; None for those of the present world model.
        :param bc_coef: weight of the distance to the windows' actions in the actor's loss; if positive, the value of
            the data's behaviour is learnt too.
        """
        policy = self.model.policy
        if latents is None:
            with self._arithmetic(), torch.no_grad():
                latents = encode_windows(policy.world_model, samples.observations)
        policy.latent_scale.update(latents)
        count = self.model.actor_batch_size or samples.mask.shape[1]
        recorded = (latents[:-1], samples.actions, latents[1:])
        starts, actions, following = (rollout_starts(each, samples.mask, count) for each in recorded)
        rollout, weights, returns = self._imagined(starts, actions, following)
        tasks = policy.tasks_of(at_steps(samples.observations, 0))
        tasks = None if tasks is None else tasks.repeat(len(samples.mask))[: len(starts)]
        policy.return_scale.update(returns.detach(), tasks)
        drawn = weights[: len(rollout.log_probs)]
        ent_coef = self._entropy_coefficient(rollout, drawn, tasks)
        return_scale = policy.return_scale.of(tasks)
        loss, metrics = actor_loss(returns, rollout.log_probs, drawn, return_scale, ent_coef=ent_coef)
        if bc_coef > 0:
            with self._arithmetic():
                advantages = self._advantages(latents[:-1], samples.actions)
                behaviour = behaviour_loss(policy.actor, latents[:-1], samples, advantages)
            loss = loss + bc_coef * relative_size(returns, return_scale) * behaviour
            metrics = metrics | {"behaviour_loss": behaviour.detach()}
        self._apply("actor", loss, metrics)
        if policy.q_critic:
            for batch in transitions:
                self._update_q_critics(batch, behaviour=bc_coef > 0)
        else:
            self._update_v_critics(rollout)

    @torch.no_grad()
    def _advantages(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor | None:
        """Return the (T, B) advantages of replayed actions over the data's behaviour, if there are Q critics.

        Both values learn from recorded actions alone and towards the same targets. Against the present policy's action
        a recorded one would lose wherever no data contradict too high a value, and would hold the policy nowhere.
        """
        behaviour_value = self.model.policy.behaviour_value
        if behaviour_value is None:
            return None
        values: torch.Tensor = self.model.policy.critics(latents, actions).mean(0) - behaviour_value(latents)[0]
        return values

    def _entropy_coefficient(
        self, rollout: ImaginedRollout, weights: torch.Tensor, tasks: torch.Tensor | None
    ) -> torch.Tensor | float:
        """Return the weight of the entropy bonus, after an update if it is learnt."""
        if not isinstance(self.model.ent_coef, str):
            return self.model.ent_coef
        policy, target = self.model.policy, self.model.target_entropy
        number = policy.actor.target_entropy(rollout.latents[0]) if isinstance(target, str) else target
        coefficient = policy.entropy_coefficient
        loss, metrics = entropy_coefficient_loss(coefficient.of(tasks), rollout.log_probs, weights, number)
        self._apply("entropy", loss, metrics)
        coefficient.bound()
        return coefficient.of(tasks).detach().exp()

    def _update_q_critics(self, samples: SequenceSamples, *, behaviour: bool) -> None:
        """Take a step towards targets that the present networks give for the windows' first steps."""
        policy = self.model.policy
        with self._arithmetic(), torch.no_grad():
            first, last = (policy.world_model.encode(ends) for ends in ends_of_windows(samples))
            targets, metrics = replay_targets(
                policy.critics_target,
                policy.actor,
                samples,
                policy.scaled_rewards(samples),
                last,
                gamma=self.model.gamma,
                pessimism=self.model.pessimism,
            )
        self._metrics.add(metrics, torch.isfinite(metrics["critic_gap"]))
        inputs = torch.cat([first, samples.actions[0]], -1)
        self._fit_critics(inputs, targets, samples.mask[0], behaviour=behaviour)

    def _update_v_critics(self, rollout: ImaginedRollout) -> None:
        """Take ``critic_updates`` minibatch steps towards the same targets, as the paper does."""
        with self._arithmetic():
            targets, weights = imagined_targets(
                self.model.policy.critics_target,
                rollout,
                gamma=self.model.gamma,
                td_lambda=self.model.td_lambda,
                pessimism=self.model.pessimism,
            )
        inputs, targets, weights = rollout.latents[:-1].detach().flatten(0, 1), targets.flatten(), weights.flatten()
        rows = minibatches(len(inputs), self.model.critic_batch_size, self.model.critic_updates, inputs.device)
        for batch in zip(inputs[rows], targets[rows], weights[rows], strict=True):
            self._fit_critics(*batch)

    def _fit_critics(
        self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, behaviour: bool = False
    ) -> None:
        """Take a step towards (N,) targets of (N, ...) inputs with (N,) weights, and move the target critics."""
        loss, metrics = self._critic_objective(inputs, targets, weights, behaviour=behaviour)
        self._apply("critic", loss, metrics)
        move_average(self._parameters["target"], self._parameters["averaged"], 1 - self.model.tau)

    @compiled
    def _critic_objective(
        self, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, behaviour: bool
    ) -> tuple[torch.Tensor, Metrics]:
        """Return the critics' loss on a minibatch, if wanted with that of the behaviour's value, and metrics."""
        policy = self.model.policy
        with self._arithmetic():
            loss, metrics = critic_loss(policy.critics(inputs), targets, weights)
            if behaviour and policy.behaviour_value is not None:
                values = policy.behaviour_value(inputs[:, : policy.world_model.latent_dim])
                loss = loss + critic_loss(values, targets, weights)[0]
        return loss, metrics

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self.model.device, self._precision)

    def _apply(self, name: str, loss: torch.Tensor, metrics: Metrics, *, average: bool = False) -> None:
        """Take an optimizer step, or skip it if it is not finite, and remember the metrics."""
        optimizer = self.model.policy.optimizers[name]
        finite = apply_gradients(optimizer, loss, self._parameters[name], MAX_GRAD_NORM[name], average=average)
        self._metrics.add(metrics, finite)
        self._skips.add(name, finite)


def minibatches(n_rows: int, batch_size: int, count: int, device: torch.device) -> torch.Tensor:
    """Draw the rows of ``count`` minibatches: all rows in random order, over and over.

    :param n_rows: number of rows.
    :param batch_size: rows per minibatch.
    :param count: number of minibatches.
    :param device: device of the result.
    :return: (count, batch_size) row indices.
    """
    passes = -(-count * batch_size // n_rows)
    order = torch.cat([torch.randperm(n_rows, device=device) for _ in range(passes)])
    return order[: count * batch_size].view(count, batch_size)
