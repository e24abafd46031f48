import math
from typing import Any

import pytest
import torch
from conftest import ACTION_DIM, LATENT_DIM, N_CRITICS
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.testing import assert_close

from sb3_pwm.compute.precision import FullPrecisionLinear
from sb3_pwm.networks import Actor, CriticEnsemble

state_dependent = pytest.mark.parametrize("state_dependent_std", [True, False])


def last_layer(actor: Actor, mean: float, log_std: float) -> None:
    """Make a state-dependent actor's outputs constant."""
    layer: Any = actor.net[-1]
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.cat([torch.full((ACTION_DIM,), mean), torch.full((ACTION_DIM,), log_std)]))


@state_dependent
def test_log_prob_is_that_of_a_tanh_normal(state_dependent_std: bool) -> None:
    actor = Actor(LATENT_DIM, ACTION_DIM, [10], state_dependent_std=state_dependent_std).double()
    latents = torch.randn(500, LATENT_DIM).double()
    actions, log_probs = actor.sample_with_log_prob(latents)
    mean, log_std = actor.distribution(latents)
    distribution = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform())
    assert_close(log_probs, distribution.log_prob(actions))


def test_log_prob_by_hand(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    # mean 0, log_std -1.5 and noise 0: u = 0, density of each dimension exp(1.5) / sqrt(2 pi)
    last_layer(actor, mean=0.0, log_std=0.0)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    actions, log_probs = actor.sample_with_log_prob(torch.zeros(1, LATENT_DIM))
    assert_close(actions, torch.zeros(1, ACTION_DIM))
    assert_close(log_probs, torch.tensor([ACTION_DIM * (1.5 - 0.5 * math.log(2 * math.pi))]))


@pytest.mark.parametrize("mean", [-100.0, 100.0])
def test_saturated_actions_have_finite_log_probs_and_gradients(actor: Actor, mean: float) -> None:
    last_layer(actor, mean=mean, log_std=0.0)
    actions, log_probs = actor.sample_with_log_prob(torch.zeros(50, LATENT_DIM))
    assert (actions == math.copysign(1, mean)).all()
    # log(1 - tanh(u)^2) = log 4 - 2 |u| for large |u|
    expected = ACTION_DIM * (2 * abs(mean) - math.log(4))
    assert_close(log_probs, torch.full((50,), expected), atol=10, rtol=0)
    log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in actor.parameters())


@state_dependent
@pytest.mark.parametrize("leading", [(5,), (4, 5)])
def test_actor_shapes_and_ranges(state_dependent_std: bool, leading: tuple[int, ...]) -> None:
    actor = Actor(LATENT_DIM, ACTION_DIM, [10], state_dependent_std=state_dependent_std)
    latents = torch.randn(*leading, LATENT_DIM)
    mean, log_std = actor.distribution(latents)
    actions, log_probs = actor.sample_with_log_prob(latents)
    assert mean.shape == log_std.shape == actions.shape == actor.mode(latents).shape == (*leading, ACTION_DIM)
    assert log_probs.shape == leading
    assert (actions.abs() <= 1).all()


@pytest.mark.parametrize(("output", "log_std"), [(-1e6, -5.0), (0.0, -1.5), (1e6, 2.0)])
def test_range_of_the_state_dependent_std(actor: Actor, output: float, log_std: float) -> None:
    last_layer(actor, mean=0.0, log_std=output)
    assert_close(actor.distribution(torch.randn(3, LATENT_DIM))[1], torch.full((3, ACTION_DIM), log_std))


@pytest.mark.parametrize(("parameter", "log_std"), [(-9.0, -1.427), (-1.0, -1.0), (0.5, 0.5)])
def test_range_of_the_state_independent_std(parameter: float, log_std: float) -> None:
    actor = Actor(LATENT_DIM, ACTION_DIM, [10], state_dependent_std=False)
    assert actor.log_std is not None
    assert_close(actor.log_std.detach(), torch.full((ACTION_DIM,), -1.0))
    nn.init.constant_(actor.log_std, parameter)
    assert_close(actor.distribution(torch.randn(3, LATENT_DIM))[1], torch.full((3, ACTION_DIM), log_std))


def test_mode_is_the_squashed_mean(actor: Actor) -> None:
    latents = torch.randn(5, LATENT_DIM)
    assert_close(actor.mode(latents), torch.tanh(actor.distribution(latents)[0]))


@state_dependent
def test_samples_have_the_stated_mean_and_std_before_tanh(state_dependent_std: bool) -> None:
    actor = Actor(LATENT_DIM, ACTION_DIM, [10], state_dependent_std=state_dependent_std)
    latents = torch.randn(1, LATENT_DIM)
    mean, log_std = actor.distribution(latents)
    u = torch.atanh(actor.sample(latents.expand(20_000, -1)).double())
    assert_close(u.mean(0).float(), mean[0], atol=0.02, rtol=0)
    assert_close(u.std(0).log().float(), log_std[0], atol=0.05, rtol=0)


@state_dependent
def test_actions_and_log_probs_are_differentiable_in_every_parameter(state_dependent_std: bool) -> None:
    actor = Actor(LATENT_DIM, ACTION_DIM, [10], state_dependent_std=state_dependent_std)
    for output in actor.sample_with_log_prob(torch.randn(5, LATENT_DIM)):
        gradients = torch.autograd.grad(output.sum(), list(actor.parameters()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("leading", [(5,), (4, 5)])
def test_critic_shapes(q_critics: CriticEnsemble, v_critics: CriticEnsemble, leading: tuple[int, ...]) -> None:
    latents, actions = torch.randn(*leading, LATENT_DIM), torch.randn(*leading, ACTION_DIM)
    assert v_critics(latents).shape == (N_CRITICS, *leading)
    assert q_critics(latents, actions).shape == (N_CRITICS, *leading)
    assert_close(q_critics(torch.cat([latents, actions], -1)), q_critics(latents, actions))


def test_critics_are_independent(v_critics: CriticEnsemble) -> None:
    latents = torch.randn(5, LATENT_DIM)
    before = v_critics(latents)
    assert all((before[i] != before[j]).all() for i in range(N_CRITICS) for j in range(i))
    critic: Any = v_critics.critics[1]
    nn.init.zeros_(critic[-1].weight)
    after = v_critics(latents)
    assert [bool((a == b).all()) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_new_critics_differ_and_start_small() -> None:
    values = CriticEnsemble(LATENT_DIM, [64, 64], 2)(torch.randn(100, LATENT_DIM))
    assert (values[0] - values[1]).abs().mean() > 1e-3
    assert values.abs().mean() < 2


def test_critics_put_out_tenths_of_values(v_critics: CriticEnsemble) -> None:
    critic: Any
    for critic in v_critics.critics:
        nn.init.zeros_(critic[-1].weight)
        nn.init.constant_(critic[-1].bias, 0.3)
    assert_close(v_critics(torch.randn(5, LATENT_DIM)), torch.full((N_CRITICS, 5), 3.0))


@pytest.mark.parametrize("norm_after_activation", [True, False])
def test_order_of_the_hidden_layers(norm_after_activation: bool) -> None:
    order = [nn.Linear, nn.Mish, nn.LayerNorm] if norm_after_activation else [nn.Linear, nn.LayerNorm, nn.Mish]
    actor = Actor(LATENT_DIM, ACTION_DIM, [4], nn.Mish, norm_after_activation=norm_after_activation)
    critics = CriticEnsemble(LATENT_DIM, [4], 2, nn.Mish, norm_after_activation=norm_after_activation)
    for net in (actor.net, *critics.critics):
        assert [type(layer) for layer in net] == [*order, FullPrecisionLinear]


def test_actions_are_the_same_with_and_without_their_probabilities(actor: Actor) -> None:
    latents = torch.randn(5, LATENT_DIM)
    torch.manual_seed(3)
    actions = actor.sample(latents)
    torch.manual_seed(3)
    assert torch.equal(actions, actor.sample_with_log_prob(latents)[0])
