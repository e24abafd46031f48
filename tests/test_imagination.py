from typing import Any

import pytest
import torch
from conftest import ACTION_DIM, LATENT_DIM
from torch.distributions import Normal
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

from sb3_pwm.imagination import imagine, inferred_noise, rollout_starts
from sb3_pwm.losses import actor_loss, state_values
from sb3_pwm.networks import Actor, CriticEnsemble
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.world_model import WorldModel

BATCH = 5
GAMMA, ENT_COEF, SCALE = 0.9, 0.3, 1.7


def start_latents(dtype: Any = torch.float32) -> torch.Tensor:
    return torch.randn(BATCH, LATENT_DIM, dtype=dtype).softmax(-1)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [0, 1, 10]),
        (4, [0, 1, 10, 1]),  # the second window's episode has ended: its first state once more
        (6, [0, 1, 10, 1, 20, 1]),
        (100, [0, 1, 10, 1, 20, 1]),
    ],
)
def test_rollouts_start_at_first_steps_first(count: int, expected: list[int]) -> None:
    latents = torch.tensor([[[0.0], [1.0]], [[10.0], [11.0]], [[20.0], [21.0]]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert rollout_starts(latents, mask, count).flatten().tolist() == expected


class Repeating(Actor):
    """Does what was recorded."""

    recorded: torch.Tensor

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.recorded, torch.zeros(len(latents))


def test_recorded_actions_lead_to_the_recorded_outcome(world_model: WorldModel) -> None:
    start, following = start_latents(), start_latents()
    actor = Repeating(LATENT_DIM, ACTION_DIM, [4])
    actor.recorded = torch.rand(BATCH, ACTION_DIM)
    noise = inferred_noise(world_model, start, actor.recorded, following)
    assert not noise.requires_grad
    rollout = imagine(world_model, actor, start, 2, noise=noise)
    assert_close(rollout.latents[1], following)
    assert_close(rollout.latents[2], world_model.next_latents(rollout.latents[1], actor.recorded, 1))
    below_zero = imagine(world_model, actor, start, 3, noise=noise - 1)
    assert (below_zero.latents[1] < -0.1).any()
    assert below_zero.latents.isfinite().all()


def test_the_gradient_knows_rare_outcomes() -> None:
    """Three of four steps end 1 lower than the mean, one 3 higher: beyond 1, where each further unit costs 4."""

    class Mean(WorldModel):
        def next_latents(self, latents: torch.Tensor, actions: torch.Tensor, step: int = 0) -> torch.Tensor:
            return latents + actions

    world_model = Mean(
        torch.nn.Identity(), 1, 1, latent_dim=1, simnorm_dim=1, encoder=[], dynamics=[], reward=[], termination=[]
    )
    actor = Repeating(1, 1, [4])
    start, recorded = torch.zeros(4, 1), torch.tensor([[0.3], [-0.2], [0.1], [0.5]])
    outcomes = recorded + torch.tensor([[-1.0], [-1.0], [3.0], [-1.0]])

    def slope(noise: torch.Tensor | None) -> float:
        actor.recorded = torch.zeros(4, 1, requires_grad=True)  # the policy's actions now
        latents = imagine(world_model, actor, start, 1, noise=noise).latents[1]
        values = latents - 5 * (latents - 1).relu()
        return torch.autograd.grad(values.mean(), actor.recorded)[0].sum().item()

    assert slope(None) == pytest.approx(1)
    assert slope(inferred_noise(world_model, start, recorded, outcomes)) == pytest.approx(0.75 * 1 + 0.25 * -4)


@pytest.mark.parametrize("horizon", [0, 1, 2, 7])
def test_shapes(world_model: WorldModel, actor: Actor, horizon: int) -> None:
    rollout = imagine(world_model, actor, start_latents(), horizon)
    assert rollout.latents.shape == (horizon + 1, BATCH, LATENT_DIM)
    assert rollout.actions.shape == (horizon, BATCH, ACTION_DIM)
    for part in (rollout.log_probs, rollout.rewards, rollout.continuations):
        assert part.shape == (horizon, BATCH)
    assert ((rollout.continuations >= 0) & (rollout.continuations <= 1)).all()


@pytest.mark.parametrize("horizon", [1, 4])
def test_a_rollout_is_what_single_steps_give(world_model: WorldModel, actor: Actor, horizon: int) -> None:
    start = start_latents()
    torch.manual_seed(1)
    rollout = imagine(world_model, actor, start, horizon)
    torch.manual_seed(1)
    latents = start
    for t in range(horizon):
        actions, log_probs = actor.sample_with_log_prob(latents)
        assert_close(rollout.latents[t], latents)
        assert_close(rollout.actions[t], actions)
        assert_close(rollout.log_probs[t], log_probs)
        assert_close(rollout.rewards[t], world_model.rewards(latents, actions))
        latents = world_model.next_latents(latents, actions)
        # whether step t ends the episode shows in the state that it leads to
        assert_close(rollout.continuations[t], world_model.continuations(latents))
    assert_close(rollout.latents[horizon], latents)


def test_without_terminations_episodes_go_on(world_model: WorldModel, actor: Actor) -> None:
    rollout = imagine(world_model, actor, start_latents(), 3, terminations=False)
    assert (rollout.continuations == 1).all()
    assert not rollout.continuations.requires_grad


def test_the_actor_sees_detached_latents(world_model: WorldModel, actor: Actor) -> None:
    start = start_latents().requires_grad_()
    rollout = imagine(world_model, actor, start, 3)
    seen_through_actions = torch.autograd.grad(rollout.actions.sum(), start, retain_graph=True, allow_unused=True)[0]
    assert seen_through_actions is None
    assert torch.autograd.grad(rollout.rewards[2].sum(), start)[0].abs().sum() > 0


def objective(rollout: Any, values: torch.Tensor, last_log_prob: torch.Tensor | None) -> torch.Tensor:
    weights = continuation_weights(rollout.continuations)
    returns = imagined_returns(rollout.rewards, weights, values, GAMMA)
    log_probs = rollout.log_probs if last_log_prob is None else torch.cat([rollout.log_probs, last_log_prob[None]])
    loss, _ = actor_loss(returns, log_probs, weights[: len(log_probs)], torch.tensor(SCALE), ent_coef=ENT_COEF)
    return loss


def plain_objective(
    world_model: WorldModel,
    actor: Actor,
    critics: CriticEnsemble,
    start: torch.Tensor,
    *,
    seen: torch.Tensor,
    noise: torch.Tensor,
    entropy_weights: torch.Tensor,
    q_critic: bool,
) -> torch.Tensor:
    """Compute the same in plain steps, with what the actor sees and the entropy's weights as given constants.

    Where they are what the rollout recorded, this function has its value; its derivative is the gradient that the
    rollout should have, because the method sends none through what the actor sees.

    :param seen: (H + 1, B, Z), :param noise: (H + 1, B, A), :param entropy_weights: (H + 1, B).
    """

    def act(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = actor.distribution(seen[t])
        u = mean + log_std.exp() * noise[t]
        log_prob = Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)
        return torch.tanh(u), log_prob.sum(-1)

    horizon = len(seen) - 1
    drawn = horizon + 1 if q_critic else horizon  # actions
    latents, returns = start, torch.zeros(BATCH, dtype=start.dtype)
    running: Any = 1.0
    bonus: Any = 0.0
    for t in range(horizon):
        action, log_prob = act(t)
        returns = returns + GAMMA**t * running * world_model.rewards(latents, action)
        bonus = bonus - (entropy_weights[t] * log_prob).mean() / drawn
        latents = world_model.next_latents(latents, action)
        running = running * world_model.continuations(latents)
    action, log_prob = act(horizon)
    if q_critic:
        bonus = bonus - (entropy_weights[horizon] * log_prob).mean() / drawn
    inputs = torch.cat([latents, action], -1) if q_critic else latents
    value = torch.stack([10 * critic(inputs).squeeze(-1) for critic in critics.critics]).mean(0)
    returns = returns + GAMMA**horizon * running * value
    return -(returns.mean() + ENT_COEF * bonus) / SCALE


@pytest.mark.parametrize(("q_critic", "horizon"), [(True, 3), (False, 3), (True, 0)])
@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_the_gradient_of_the_imagined_objective_against_finite_differences(
    world_model: WorldModel,
    q_critics: CriticEnsemble,
    v_critics: CriticEnsemble,
    q_critic: bool,
    horizon: int,
    state_dependent_std: bool,
) -> None:
    step = 1e-5
    critics = (q_critics if q_critic else v_critics).double()
    world_model = world_model.double()
    actor = Actor(LATENT_DIM, ACTION_DIM, [4], state_dependent_std=state_dependent_std).double()
    start = start_latents(torch.float64)

    torch.manual_seed(1)
    rollout = imagine(world_model, actor, start, horizon)
    loss = objective(rollout, *state_values(critics, actor, rollout.latents[-1], q_critic=q_critic))
    gradient = parameters_to_vector(torch.autograd.grad(loss, list(actor.parameters()))).detach()

    torch.manual_seed(1)
    constants: dict[str, Any] = {
        "seen": rollout.latents.detach(),
        "noise": torch.stack([torch.randn(BATCH, ACTION_DIM, dtype=torch.float64) for _ in range(horizon + 1)]),
        "entropy_weights": continuation_weights(rollout.continuations).detach(),
    }
    parameters = parameters_to_vector(actor.parameters()).detach().clone()

    def loss_at(point: torch.Tensor) -> torch.Tensor:
        vector_to_parameters(point, actor.parameters())
        return plain_objective(world_model, actor, critics, start, **constants, q_critic=q_critic).detach()

    assert_close(loss_at(parameters), loss.detach())
    differences = torch.stack(
        [
            (loss_at(parameters + step * direction) - loss_at(parameters - step * direction)) / (2 * step)
            for direction in torch.eye(len(parameters), dtype=torch.float64)
        ]
    )
    assert gradient.abs().max() > 1e-2
    assert_close(gradient, differences, rtol=1e-5, atol=1e-8)
